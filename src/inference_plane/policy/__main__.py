"""Starts the policy service."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from aiohttp import web

from .config import Config, ConfigError, load
from .server import application


class Still:
    """Every share at 0, and nothing known of demand."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def shares(self):
        return {name: 0 for name, model in self._config.models.items() if model.fallback}

    def demand(self, model):
        return None

    def models(self):
        return self._config.models

    def state(self):
        return None

    def not_ready(self):
        return None

    def not_live(self):
        return None

    def metrics(self):
        return b""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m inference_plane.policy", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="the JSON file that Helm rendered")
    path = parser.parse_args().config
    try:
        config = load(path)
    except ConfigError as error:
        print(f"error: {path}: {error}", file=sys.stderr)
        return 1
    web.run_app(application(Still(config)), host=config.listen.address, port=config.listen.port, print=None)
    return 0


if __name__ == "__main__":
    sys.exit(main())

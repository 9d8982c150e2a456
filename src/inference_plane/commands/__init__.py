"""One module a command; `scripts/NAME` runs `inference_plane.commands.NAME`, by way of `__main__`."""

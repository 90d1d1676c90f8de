"""Fails when the committed generated code differs from what protos/*.proto generate: run `make protos`."""

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Generate into an empty folder and compare, byte for byte."""
    with tempfile.TemporaryDirectory() as folder:
        sources = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "protos").glob("*.proto"))
        flags = [f"--{kind}_out={folder}" for kind in ("python", "pyi", "grpc_python")]
        command = [sys.executable, "-m", "grpc_tools.protoc", "-Ihoming/protos=protos", *flags, *sources]
        subprocess.run(command, cwd=ROOT, check=True)
        made = {path.name: path.read_bytes() for path in (Path(folder) / "homing/protos").iterdir()}
    known = {path.name: path.read_bytes() for path in (ROOT / "protos").glob("*_pb2*")}
    differing = sorted(name for name in made.keys() | known.keys() if made.get(name) != known.get(name))
    if differing:
        print(f"generated code is not what protos/*.proto generate: {', '.join(differing)}; run `make protos`")
        return 1
    print(f"{len(made)} generated files are up to date")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

#!/usr/bin/env bash
# Make the Python of serve_apps/open_inference.proto anew; the compiler is taken for this once and stays outside of .venv.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
.venv/bin/uv run --no-project --python .venv/bin/python --with grpcio-tools==1.85.1 python -m grpc_tools.protoc -I. --python_out=. --grpc_python_out=. serve_apps/open_inference.proto

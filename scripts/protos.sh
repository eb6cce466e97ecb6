#!/usr/bin/env bash
# Make the Python of serve_apps/open_inference.proto anew; the compiler is taken for this once and stays outside of .venv.
# It is one of protobuf 6: what it writes runs with 6 and 7, and requirements/gpu.lock has the one, cpu.lock the other.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
.venv/bin/uv run --no-project --python .venv/bin/python --with grpcio-tools==1.76.0 python -m grpc_tools.protoc -I. --python_out=. --grpc_python_out=. serve_apps/open_inference.proto

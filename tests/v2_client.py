"""A team's own client of the Open Inference Protocol, tritonclient, in a process of its own (its gRPC messages have our names): one JSON line of scores.

Run by test_serve_app: python tests/v2_client.py 127.0.0.1:8000 127.0.0.1:9000
"""

import json
import sys
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.http


def told(module: Any, url: str) -> dict[str, Any]:
    """What one of its two clients gets of ChoirRec."""
    client = module.InferenceServerClient(url)
    assert client.is_server_live()
    assert client.is_model_ready("choirrec")
    metadata = client.get_model_metadata("choirrec")
    versions = metadata["versions"] if isinstance(metadata, dict) else list(metadata.versions)
    inputs = []
    for name, ids in (("user_id", ["a"]), ("item_id", ["tea", "book"])):
        tensor = module.InferInput(name, [len(ids)], "BYTES")
        tensor.set_data_from_numpy(np.array([one.encode() for one in ids], object))
        inputs.append(tensor)
    scores = client.infer("choirrec", inputs, outputs=[module.InferRequestedOutput("outcome")]).as_numpy("outcome")
    pinned = client.infer("choirrec", inputs, model_version=versions[0]).as_numpy("outcome")
    return {"versions": versions, "scores": scores.tolist(), "pinned": pinned.tolist()}


print(json.dumps({"http": told(tritonclient.http, sys.argv[1]), "grpc": told(tritonclient.grpc, sys.argv[2])}))

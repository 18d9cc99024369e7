"""Encoders of any origin: their own preprocessing, their features, judged on a run's items."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import nearfar
from nearfar import compare
from nearfar.cli import main
from nearfar.data import open_source
from nearfar.foreign.judge import folder_for, load
from nearfar.foreign.preprocessing import Preprocessing
from nearfar.foreign.spec import Choices

torchvision = pytest.importorskip("torchvision")


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(0).integers(0, 256, (6, 40, 50, 3), np.uint8)


def embedded(spec, images, **choices):
    return load(spec, Choices(**choices)).embed_part(open_source(images).train, show=False)


def near(a, b, within):
    """Largest difference, relative to the features' own size."""
    return np.abs(a - b).max() <= within * np.abs(b).max()


def test_torchvision_equals_its_own_transforms_on_pillow_images(pictures):
    got = embedded("torchvision:resnet18@random", pictures)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = torchvision.models.resnet18(weights=None).eval()
    net.fc = nn.Identity()
    transform = torchvision.models.ResNet18_Weights.DEFAULT.transforms()
    with torch.no_grad():
        want = net(torch.stack([transform(Image.fromarray(x)) for x in pictures])).numpy()
    assert got.shape == (6, 512)
    assert near(got, want, 5e-3)  # bytes differ by one level in a few per cent of the pixels


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_timms_transforms(mode, interpolation, pictures):
    timm = pytest.importorskip("timm")
    from nearfar.foreign.vision import _of_timm

    cfg = {"input_size": (3, 32, 32), "crop_pct": 0.875, "crop_mode": mode, "interpolation": interpolation,
           "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}  # fmt: skip
    transform = timm.data.create_transform(**cfg, is_training=False)
    want = torch.stack([transform(Image.fromarray(x)) for x in pictures])
    got = _of_timm(cfg)(torch.from_numpy(pictures.transpose(0, 3, 1, 2).copy()))
    assert got.shape == want.shape
    assert float((got - want).abs().max()) <= 1.01 / 255 / 0.2  # one level, in units of the smallest deviation


def test_grey_and_float_images(pictures):
    grey = pictures[..., :1]
    a = embedded("timm:test_vit@random", grey)
    b = embedded("timm:test_vit@random", np.repeat(grey, 3, 3))
    c = embedded("timm:test_vit@random", grey.astype(np.float32) / 255)
    assert near(a, b, 1e-5)
    assert near(c, a, 0.02)  # floats are not rounded after they are resized


def test_local_and_cached_weights(pictures, tmp_path, monkeypatch):
    net = torchvision.models.resnet18(weights=None, num_classes=7)
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    local = embedded(f"torchvision:resnet18@{tmp_path}/w.safetensors", pictures[:2])
    net.fc = nn.Identity()
    own = Preprocessing(3, (256, 256), "cover", (224, 224), "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    with torch.no_grad():
        want = net.eval()(own(torch.from_numpy(pictures[:2].transpose(0, 3, 1, 2).copy()))).numpy()
    assert near(local, want, 1e-5)
    net.fc = nn.Linear(512, 1000)  # what torchvision would have fetched
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    held = tmp_path / "hub" / "checkpoints"
    held.mkdir(parents=True)
    torch.save(net.state_dict(), held / "resnet18-f37072fd.pth")
    found = load("torchvision:resnet18")
    assert found.about["weights"] == "ResNet18_Weights.IMAGENET1K_V1"
    assert near(found.embed_part(open_source(pictures[:2]).train), want, 1e-5)


def test_timm_weights_from_a_file(pictures, tmp_path):
    timm = pytest.importorskip("timm")
    net = timm.create_model("test_resnet", num_classes=5)
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    got = load(f"timm:test_resnet@{tmp_path}/w.safetensors")
    assert got.name == "timm:test_resnet@w"
    assert got.embed_part(open_source(pictures).train).shape[0] == 6
    save_file({k: v for k, v in net.state_dict().items() if "conv1" not in k}, tmp_path / "cut.safetensors")
    with pytest.raises(ValueError, match="does not fit timm:test_resnet"):
        load(f"timm:test_resnet@{tmp_path}/cut.safetensors")


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
                                    image_size=32, patch_size=8)  # fmt: skip
    folder = tmp_path_factory.mktemp("vit")
    for name in (True, False):
        transformers.ViTModel(config, add_pooling_layer=name).save_pretrained(folder / str(name))
        transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder / str(name))
    return folder


@pytest.mark.parametrize(("pooler", "said"), [(True, "pooler_output"), (False, "class token of last_hidden_state")])
def test_transformers_from_a_folder(vit, pooler, said, pictures):
    import transformers

    folder = vit / str(pooler)
    encoder = load(f"transformers:{folder}")
    assert encoder.about["features"] == said
    net = transformers.ViTModel.from_pretrained(folder, add_pooling_layer=pooler).eval()
    given = transformers.ViTImageProcessor.from_pretrained(folder)([Image.fromarray(x) for x in pictures],
                                                                   return_tensors="pt")  # fmt: skip
    with torch.no_grad():
        out = net(**given)
    want = (out.pooler_output if pooler else out.last_hidden_state[:, 0]).numpy()
    assert near(encoder.embed_part(open_source(pictures).train), want, 1e-4)


def test_transformers_of_other_kinds(pictures, tmp_path):
    """Maps are averaged, image features of image-and-text models taken; fresh weights are the same each time."""
    import transformers

    resnet = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 32, "patch_size": 8}  # fmt: skip
    text = vision | {"vocab_size": 50, "eos_token_id": 1, "bos_token_id": 0, "pad_token_id": 2}
    clip = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
    for name, config, said, d in (("r", resnet, "pooler_output", 16), ("c", clip, "image features in the space", 12)):
        config.save_pretrained(tmp_path / name)
        transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / name)
        encoder = load(f"transformers:{tmp_path / name}@random")
        assert encoder.about["features"].startswith(said)
        z = encoder.embed_part(open_source(pictures).train)
        assert z.shape == (6, d)
        assert (z == load(f"transformers:{tmp_path / name}@random").embed_part(open_source(pictures).train)).all()


def test_a_pickle_is_not_read(vit, tmp_path):
    import shutil

    shutil.copytree(vit / "True", tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").unlink()
    torch.save({}, tmp_path / "m" / "pytorch_model.bin")
    with pytest.raises(ValueError, match="cannot be loaded"):
        load(f"transformers:{tmp_path / 'm'}")
    save_file({"x": torch.zeros(1)}, tmp_path / "m" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="of its weights are missing"):
        load(f"transformers:{tmp_path / 'm'}")


def test_another_size(pictures):
    for spec in ("timm:test_vit@random", "timm:test_resnet@random"):
        encoder = load(spec, Choices(input_size=64))
        assert "centre 64×64" in encoder.about["preprocessing"]
        assert len(encoder.embed_part(open_source(pictures).train)) == 6
    with pytest.raises(ValueError, match=r"torchvision:vit_b_16 does not take images of 64×64"):
        embedded("torchvision:vit_b_16@random", pictures, input_size=64)


def graph(path, *, batch="n", last=False, kind="FLOAT", rank=4):
    """A convolution of 8×8 images to 4 channels; of rank 2 its mean over the map."""
    onnx = pytest.importorskip("onnx")
    h = onnx.helper
    w = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)
    shape = [batch, 8, 8, 3] if last else [batch, 3, 8, 8]
    nodes = [h.make_node("Cast", ["x"], ["f"], to=onnx.TensorProto.FLOAT)]
    nodes += [h.make_node("Transpose", ["f"], ["t"], perm=[0, 3, 1, 2])] if last else []
    nodes.append(h.make_node("Conv", ["t" if last else "f", "w"], ["c"]))
    nodes += [h.make_node("GlobalAveragePool", ["c"], ["p"]), h.make_node("Flatten", ["p"], ["z"])]
    nodes += [h.make_node("Transpose", ["c"], ["m"], perm=[0, 2, 3, 1])] if last else []
    outs = {4: ("m", [batch, 6, 6, 4]) if last else ("c", [batch, 4, 6, 6]), 2: ("z", [batch, 4])}
    g = h.make_graph(nodes, "g", [h.make_tensor_value_info("x", getattr(onnx.TensorProto, kind), shape)],
                     [h.make_tensor_value_info(outs[rank][0], onnx.TensorProto.FLOAT, outs[rank][1])],
                     [onnx.numpy_helper.from_array(w, "w")])  # fmt: skip
    onnx.save(h.make_model(g, opset_imports=[h.make_opsetid("", 17)], ir_version=9), path)
    return torch.from_numpy(w)


@pytest.mark.parametrize("given", [{}, {"rank": 2}, {"batch": 4}, {"last": True}, {"kind": "UINT8", "batch": 1}])
def test_onnx_equals_torch(given, tmp_path):
    pytest.importorskip("onnxruntime")
    x = np.random.default_rng(1).integers(0, 256, (6, 8, 8, 3), np.uint8)
    w = graph(tmp_path / "m.onnx", **given)
    scale = 1 if "kind" in given else 255
    want = torch.conv2d(torch.from_numpy(x).permute(0, 3, 1, 2).float() / scale, w).mean((2, 3)).numpy()
    assert near(embedded(tmp_path / "m.onnx", x), want, 1e-5)
    if "kind" not in given:
        shifted = torch.conv2d((torch.from_numpy(x).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25, w).mean((2, 3)).numpy()
        assert near(embedded(tmp_path / "m.onnx", x, mean=(0.5,), std=(0.25,)), shifted, 1e-5)


@pytest.mark.filterwarnings("ignore:.*legacy TorchScript-based:DeprecationWarning", "ignore::UserWarning:torch.onnx")
def test_nearfars_own_encoder_as_onnx(small_run, tmp_path, digits):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    path = tmp_path / "run.onnx"
    torch.onnx.export(small_run.encoder.eval(), (torch.zeros(2, 1, 8, 8),), path, dynamo=False,
                      dynamic_axes={"x": {0: "n"}, "z": {0: "n"}}, input_names=["x"], output_names=["z"])  # fmt: skip
    assert near(embedded(path, digits[0][:70]), small_run.embed(digits[0][:70]), 1e-5)
    out = tmp_path / "judged"
    source = str(small_run.recipe.source)
    assert main(["evaluate", str(path), source, "--out", str(out), "--draws", "2", "--more"]) == 0
    same = compare.compare([small_run.folder, out])  # the same items, and the same features
    assert {"kNN", "linear"} <= {d.judge for d in same}
    assert all(abs(d.value) <= 0.011 for d in same)
    held = json.loads((out / "results.json").read_text())["evaluation"]
    assert [row["embedding"] for row in held["rows"]] == ["run.onnx", "raw pixels"]
    assert held["protocol"]["model"]["preprocessing"].startswith("resized to cover 8×8")
    assert "not known" in held["notes"][-1]


def test_like_a_run_and_embed(small_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    spec = "torchvision:squeezenet1_1@random"
    source = str(small_run.recipe.source)
    assert main(["evaluate", spec, "--like", str(small_run.folder), "--draws", "2", "--input-size", "32"]) == 0
    folder = folder_for(spec, source)
    assert {"kNN", "linear"} <= {d.judge for d in compare.compare([small_run.folder, folder])}
    assert main(["embed", spec, source, "-o", "e.npz", "--input-size", "32"]) == 0
    with np.load("e.npz") as held:
        assert held["features"].shape == (400, 512)
    capsys.readouterr()
    assert main(["evaluate", str(small_run.folder), "--mean", "0.5"]) == 2
    assert "leave --out" in capsys.readouterr().err
    assert main(["evaluate", spec, source, "--out", str(small_run.folder)]) == 2
    assert "holds other things" in capsys.readouterr().err


def test_a_callable_in_python(digits):
    x, y = digits
    net = nn.Sequential(nn.Dropout(0.5), nn.Flatten())
    found = nearfar.evaluate_model(net, (x[:400], y[:400]), draws=2, show=False)
    assert net.training
    for judge in ("kNN", "linear"):  # flattened pixels are raw pixels
        assert found["Sequential"][judge].value == found["raw pixels"][judge].value


@pytest.mark.parametrize(("call", "says"), [
    (lambda x: x.flatten(1) * float("nan"), "gives NaN or infinity, first for image 0"),
    (lambda x: x, r"gives \(64, 1, 8, 8\) for 64 images"),
    (lambda x: x.flatten(1)[:3], r"gives \(3, 64\) for 64 images"),
    (lambda x: np.full((len(x), 2), "a"), "gives values of type"),
])  # fmt: skip
def test_what_a_callable_must_give(call, says, digits):
    with pytest.raises(ValueError, match=says):
        nearfar.evaluate_model(call, (digits[0][:100], digits[1][:100]))


@pytest.mark.parametrize(("spec", "says"), [
    ("torchvision:resnet1", "did you mean 'resnet18'"),
    ("torchvision:resnet18@IMAGENET1K_V9", "did you mean 'IMAGENET1K_V1'"),
    ("timm:resnet18@w.pth", "from .safetensors alone"),
    ("timm:resnet18@w.safetensors", "no such file of weights"),
    ("timm:", "names no model"),
    ("transformers:/no/folder", "no such folder"),
    ("no.onnx", "no such file"),
    ("tim:resnet18", "did you mean 'timm'"),
])  # fmt: skip
def test_what_cannot_be_loaded_is_one_line(spec, says):
    with pytest.raises(ValueError, match=says) as error:
        load(spec)
    assert "\n" not in str(error.value)


def test_without_network_the_fix_is_named(tmp_path, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    fixes = {"torchvision:resnet18": "@random", "timm:resnet18": "@random",
             "transformers:facebook/dino-vits16": "transformers:FOLDER"}  # fmt: skip
    for spec, fix in fixes.items():
        with pytest.raises(ValueError, match=f"{spec}: its weights are not here .*{fix}"):
            load(spec)


def test_one_image_and_no_labels(digits):
    one = (digits[0][:1], digits[1][:1])
    assert load(lambda x: x.flatten(1)).embed_part(open_source(one).train).shape == (1, 64)
    with pytest.raises(ValueError, match="1 images are too few"):
        nearfar.evaluate_model(lambda x: x.flatten(1), one)
    with pytest.raises(ValueError, match="no labels to judge by"):
        nearfar.evaluate_model(lambda x: x.flatten(1), digits[0][:50])


def test_broken_onnx(tmp_path):
    pytest.importorskip("onnxruntime")
    (tmp_path / "m.onnx").write_bytes(b"none")
    with pytest.raises(ValueError, match="no ONNX model"):
        load(tmp_path / "m.onnx")
    graph(tmp_path / "m.onnx")
    with pytest.raises(ValueError, match="takes images of 3 channels, these have 2"):
        embedded(tmp_path / "m.onnx", np.zeros((2, 8, 8, 2), np.uint8))
    with pytest.raises(ValueError, match="leave --input-size out"):
        load(tmp_path / "m.onnx", Choices(input_size=9))

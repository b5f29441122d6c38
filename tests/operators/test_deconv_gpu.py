"""What only a CUDA device can show: same numbers as the CPU, 16-bit training, compiled training."""

import copy

import pytest
import torch

from segdeconv.operators.deconv import Deconv2d, DeconvTranspose2d, Delinear

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

LAYERS = {
    "3x3": lambda: Deconv2d(64, 32, 3, padding=1),
    "1x1": lambda: Deconv2d(64, 32, 1),
    "released 3x3": lambda: Deconv2d(64, 32, 3, padding=1, preset="released"),
    "stem": lambda: Deconv2d(3, 32, 7, stride=2, padding=3, n_iter=15),
    "depthwise": lambda: Deconv2d(64, 64, 3, padding=1, groups=64),
    "dilated": lambda: Deconv2d(64, 32, 3, padding=12, dilation=12),
    "transposed": lambda: DeconvTranspose2d(64, 32, 4, stride=2, padding=1),
}


def images(layer):
    torch.manual_seed(1)
    return torch.randn(4, layer.in_channels, 32, 32).cumsum(-1).relu() / 5


def pairs(found, expected):
    return zip(found, expected, strict=True)


def step(layer, x):
    x = x.detach().clone().requires_grad_()
    y = layer(x)
    y.float().square().mean().backward()
    return y, x.grad, layer.weight.grad


@pytest.mark.parametrize("name", LAYERS)
def test_a_step_gives_the_numbers_of_the_cpu(name):
    layer = LAYERS[name]()
    other = copy.deepcopy(layer).cuda()
    for found, expected in pairs(step(other, images(layer).cuda()), step(layer, images(layer))):
        torch.testing.assert_close(found.cpu(), expected, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_sixteen_bit_steps_stay_close_to_float32(name, dtype):
    layer = LAYERS[name]().cuda()
    other = copy.deepcopy(layer)
    x = images(layer).cuda()
    expected = layer(x)
    with torch.autocast("cuda", dtype=dtype):
        found = other(x)
    assert found.dtype == dtype
    assert (found.float() - expected).std() < 0.05 * expected.std()
    assert other.running_deconv.dtype == torch.float32
    torch.testing.assert_close(other.running_deconv, layer.running_deconv, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", LAYERS)
def test_compiled_training_and_evaluation_equal_eager(name):
    torch._dynamo.reset()
    layer = LAYERS[name]().cuda()
    other = copy.deepcopy(layer)
    compiled = torch.compile(other, fullgraph=True)
    x = images(layer).cuda()
    for _ in range(2):
        for found, expected in pairs(step(compiled, x), step(layer, x)):
            torch.testing.assert_close(found, expected, rtol=5e-3, atol=5e-4)
    layer.eval(), other.eval()
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), layer(x), rtol=5e-3, atol=5e-4)


def test_a_training_step_is_captured_as_a_cuda_graph():
    layer = Deconv2d(64, 32, 3, padding=1).cuda()
    x = images(layer).cuda()
    graphed = torch.cuda.make_graphed_callables(copy.deepcopy(layer), (x.clone(),))
    torch.testing.assert_close(graphed(x), layer(x), rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("options", [{}, {"gram": "input"}, {"preset": "released"}], ids=str)
def test_a_whole_training_step_replays_as_one_graph(options):
    def network():
        torch.manual_seed(0)
        layers = Deconv2d(3, 16, 3, padding=1, n_iter=15), Deconv2d(16, 8, 3, padding=1, **options)
        return torch.nn.Sequential(layers[0], torch.nn.ReLU(), layers[1]).cuda()

    def trainer(net, x):
        optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)

        def train():
            optimizer.zero_grad()
            with torch.autocast("cuda", dtype=torch.bfloat16):
                loss = (net(x).float() - 1).square().mean()
            loss.backward()
            optimizer.step()

        return train

    batches = [torch.randn(8, 3, 24, 24, device="cuda") for _ in range(6)]
    eager, graphed, x = network(), network(), batches[0].clone()
    usual, step = trainer(eager, y := x.clone()), trainer(graphed, x)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # recorded, not run
        step()
    for batch in [batches[0]] * 3:
        y.copy_(batch), usual()
    for batch in batches[1:]:
        y.copy_(batch), usual()
        x.copy_(batch), graph.replay()
    state = graphed.state_dict()
    for name, value in eager.state_dict().items():
        assert float((state[name] - value).norm()) <= 0.02 * float(value.norm()), name


def test_linear_layers_give_the_numbers_of_the_cpu():
    layer = Delinear(128, 10)
    other = copy.deepcopy(layer).cuda()
    x = torch.randn(256, 128)
    torch.testing.assert_close(other(x.cuda()).cpu(), layer(x), rtol=2e-3, atol=2e-4)

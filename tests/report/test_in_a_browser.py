"""The page as Chromium shows it: what the controls change on the screen."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from segdeconv.report import (
    ClassificationObserver,
    Evaluation,
    make_example,
    read_run,
    render_report,
)

pytestmark = pytest.mark.browser

GREY = 120


@pytest.fixture(scope="module")
def address(make_run, known, tmp_path_factory):
    """A report with one example: left half road, right half sky; all predicted as road."""
    folder = make_run(tmp_path_factory.mktemp("browser") / "my_run")
    image = np.full((40, 60, 3), GREY, np.uint8)
    truth = np.zeros((40, 60), np.uint8)
    truth[:, 30:] = 1
    example = make_example("example", 0.25, 1, image, truth, np.zeros_like(truth))
    evaluation = Evaluation(
        {}, None, [example, example], "seen", known.colours, 255, {"peak main memory": "1 GiB"}
    )
    (folder / "report.html").write_text(render_report(read_run(folder), evaluation))
    return (folder / "report.html").as_uri()


@pytest.fixture(scope="module")
def gallery(make_run, tmp_path_factory):
    """The report of a classifier: six mistakes, of red and of blue images, and no hit."""
    folder = make_run(tmp_path_factory.mktemp("classifier") / "my_run")
    colours = torch.eye(3)[[0, 2] * 3]
    images = colours.view(6, 3, 1, 1).expand(-1, -1, 32, 32)
    long = "a name that is much longer than a picture is wide"
    observer = ClassificationObserver(("cat", long), (0.0,) * 3, (1.0,) * 3)
    logits = torch.stack([torch.zeros(6), torch.arange(6, 0, -1)], 1)
    observer([f"image {n}" for n in range(6)], images, logits, torch.zeros(6, dtype=torch.long))
    record = {"images": 6, "split": "test", "mode": "whole image", "top1": 0.0}
    shown = {"Wrong, the surest first": observer.wrong, "Right": observer.right}
    evaluation = Evaluation(record, observer.calibration, seen="all", classified=shown)
    (folder / "report.html").write_text(render_report(read_run(folder), evaluation))
    return (folder / "report.html").as_uri()


@pytest.mark.parametrize("width", [360, 1000])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_classifiers_images_are_seen_with_what_was_said_of_them(browser, gallery, scheme, width):
    page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 800})
    complaints = []
    page.on("console", lambda message: complaints.append(message.text))
    page.goto(gallery)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width
    cards = page.locator(".gallery li").all()
    assert len(cards) == 6
    for number, card in enumerate(cards):
        picture = card.locator("img")
        pixels = np.asarray(Image.open(io.BytesIO(picture.screenshot())).convert("RGB"))
        height, wide = pixels.shape[:2]
        assert min(height, wide) >= 90 and abs(height - wide) <= 1  # enlarged, and square
        assert close(
            pixels[height // 2, wide // 2],
            [255 * (number % 2 == c // 2) * (c != 1) for c in range(3)],
        )
        texts = [line.bounding_box() for line in card.locator("p").all()]
        frame = card.bounding_box()
        assert all(t["x"] + t["width"] <= frame["x"] + frame["width"] for t in texts)
        assert "truth: cat" in card.inner_text()
    page.close()
    assert complaints == []


@pytest.fixture
def page(browser, address):
    """The page, which must not complain and must not ask for anything."""
    complaints, asked = [], []
    opened = browser.new_page(viewport={"width": 1000, "height": 900})
    opened.on("console", lambda message: complaints.append(message.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto(address)
    yield opened
    opened.close()
    assert complaints == []
    assert [url for url in asked if not url.startswith("data:")] == [address]


def shown(page, kind):
    """Colours (left, right) of a panel of the first example, as they are on the screen."""
    stack = page.locator(f'.example:first-of-type [data-kind="{kind}"] .stack')
    pixels = np.asarray(Image.open(io.BytesIO(stack.screenshot())).convert("RGB")).astype(int)
    height, width = pixels.shape[:2]
    return pixels[height // 2, width // 4], pixels[height // 2, 3 * width // 4]


def mixed(colour, opacity, base=GREY):
    return (1 - opacity) * base + opacity * np.array(colour)


def close(found, expected):
    return np.abs(np.subtract(found, expected)).max() <= 4  # JPEG and rounding


def test_panels_show_image_truth_prediction_and_errors(page, known):
    road, sky = known.colours[:2]
    left, right = shown(page, "image")
    assert close(left, [GREY] * 3) and close(right, [GREY] * 3)
    left, right = shown(page, "truth")
    assert close(left, mixed(road, 0.6)) and close(right, mixed(sky, 0.6))
    left, right = shown(page, "prediction")
    assert close(left, mixed(road, 0.6)) and close(right, mixed(road, 0.6))
    left, right = shown(page, "errors")
    assert np.ptp(left) == 0  # grey: nothing is wrong there
    assert right[0] - right[2] > 100  # vermillion


def test_the_slider_changes_the_opacity_on_the_screen(page, known):
    slider = page.get_by_label("opacity")
    for value in (0, 25, 100):
        slider.fill(str(value))
        left, _ = shown(page, "truth")
        assert close(left, mixed(known.colours[0], value / 100))
        assert page.locator("#opacity-value").inner_text() == f"{value} %"
    slider.focus()
    page.keyboard.press("ArrowLeft")
    assert page.locator("#opacity-value").inner_text() == "99 %"


def test_a_toggle_hides_its_class_everywhere(page, known):
    page.locator("summary", has_text="classes").click()
    page.get_by_label("road").uncheck()
    left, right = shown(page, "truth")
    assert close(left, [GREY] * 3) and close(right, mixed(known.colours[1], 0.6))
    assert all(close(side, [GREY] * 3) for side in shown(page, "prediction"))
    page.get_by_label("sky").uncheck()
    assert np.ptp(shown(page, "errors")[1]) == 0
    page.get_by_role("button", name="all").click()
    assert close(shown(page, "truth")[0], mixed(known.colours[0], 0.6))
    page.get_by_role("button", name="none").click()
    assert close(shown(page, "truth")[1], [GREY] * 3)
    assert not page.get_by_label("road").is_checked()


def test_the_pointer_names_the_classes_below_it(page, known):
    stack = page.locator('.example:first-of-type [data-kind="truth"] .stack')
    box = stack.bounding_box()
    stack.hover(position={"x": 0.75 * box["width"], "y": 0.5 * box["height"]})
    words = page.locator(".example:first-of-type .readout").inner_text()
    assert words == f"truth: {known.names[1]}, prediction: {known.names[0]}"


def test_bars_are_as_long_as_their_scores(page, known):
    bars = page.locator("td.bar").all()
    for bar, score in zip(bars, known.iou.values(), strict=True):
        full, drawn = (
            bar.bounding_box()["width"],
            bar.locator("span").evaluate("e => e.clientWidth"),
        )
        assert drawn == pytest.approx(score * full, abs=2)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_figures_stand_out_from_the_background(browser, address, scheme):
    page = browser.new_page(color_scheme=scheme)
    page.goto(address)
    script = """() => {
        const style = getComputedStyle(document.documentElement);
        const names = ["back", "front", "soft", ...[0, 1, 2, 3, 4, 5].map((n) => `series${n}`)];
        return names.map((name) => style.getPropertyValue(`--${name}`).trim());
    }"""
    back, front, soft, *series = [luminance(colour) for colour in page.evaluate(script)]
    assert (back > 0.5) == (scheme == "light")
    assert contrast(back, front) >= 7 and contrast(back, soft) >= 4.5
    assert min(contrast(back, colour) for colour in series) >= 3  # WCAG 2, graphics
    drawn = page.locator("#curves text").first.evaluate("e => getComputedStyle(e).fill")
    body = page.evaluate("() => getComputedStyle(document.body).color")
    assert drawn == body
    page.close()


def luminance(colour):
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return float(np.dot((0.2126, 0.7152, 0.0722), linear))


def contrast(one, other):
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)


def test_on_a_phone_nothing_is_wider_than_the_screen(browser, address):
    page = browser.new_page(viewport={"width": 360, "height": 740})
    page.goto(address)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 360
    sizes = page.locator("#curves text").evaluate_all(
        "all => all.map((e) => e.getBoundingClientRect().height)"
    )
    assert min(sizes) >= 9  # pixels of a line of text
    page.close()

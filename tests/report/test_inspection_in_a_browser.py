"""The page of an inspection as Chromium shows it."""

import io

import numpy as np
import pytest
from PIL import Image

from segdeconv.report import raster, read_run, render_inspection, render_report
from segdeconv.report.inspection import put_into

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def address(inspected, tmp_path_factory):
    path = tmp_path_factory.mktemp("browser") / "inspect.html"
    path.write_text(render_inspection(inspected.data))
    return path.as_uri()


def open_page(browser, address, complaints, **options):
    """A page whose complaints and requests are noted."""
    page = browser.new_page(**options)
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: complaints.append(request.url[:80]))
    page.goto(address)
    return page


def screenshot(element):
    return np.asarray(Image.open(io.BytesIO(element.screenshot())).convert("RGB")).astype(int)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pictures_are_on_the_screen_and_nothing_is_asked_for(browser, address, scheme):
    noted = []
    page = open_page(browser, address, noted, color_scheme=scheme)
    for picture in page.locator("img").all():
        assert picture.evaluate("e => e.complete && e.naturalWidth > 0")
    first = page.locator(".maps img").first
    first.scroll_into_view_if_needed()
    shown = screenshot(first)
    places = [round((row + 0.5) * len(shown) / 27) for row in (3, 13, 23)]
    for place in places:  # a column's correlation with itself
        assert np.abs(shown[place, place] - raster.POSITIVE).max() <= 3
    back = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    light = np.mean([int(part) for part in back[4:-1].split(",")]) > 128
    assert light == (scheme == "light")
    asked = [each for each in noted if not each.startswith("data:")]
    assert asked == [address]
    page.close()


def test_a_field_and_its_square_are_drawn_where_they_are(browser, address):
    page = open_page(browser, address, [])
    field = page.locator("svg.field").first
    field.scroll_into_view_if_needed()
    shown = screenshot(field)
    height, width = shown.shape[:2]
    middle = shown[round(16.5 / 32 * height), round(16.5 / 32 * width)]
    assert middle[0] - middle[2] > 60  # vermillion
    assert (shown[height // 8, width // 8] == 255).all()
    rect = field.locator("rect").first.bounding_box()
    assert rect["width"] == pytest.approx(3 / 32 * width, abs=3)
    page.close()


def test_filters_of_all_pixels_unfold_and_stay_sharp(browser, address):
    page = open_page(browser, address, [])
    hidden = page.locator(".filters details img").first
    assert not hidden.is_visible()
    page.locator("summary", has_text="Filters of all pixels").first.click()
    assert hidden.is_visible()
    assert hidden.evaluate("e => getComputedStyle(e).imageRendering") == "pixelated"
    page.close()


def test_on_a_phone_nothing_is_wider_than_the_screen(browser, address):
    page = open_page(browser, address, [], viewport={"width": 360, "height": 740})
    for details in page.locator("details > summary").all():
        details.click()
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 360
    sizes = page.locator("main svg text").evaluate_all(
        "all => all.map((e) => e.getBoundingClientRect().height)"
    )
    assert min(sizes) >= 9  # pixels of a line of text
    page.close()


def test_the_link_of_a_report_leads_to_the_section(browser, run_folder, inspected):
    path = run_folder / "report.html"
    path.write_text(put_into(render_report(read_run(run_folder)), inspected.data))
    noted = []
    page = open_page(browser, path.as_uri(), noted)
    page.get_by_role("link", name="Inspection").click()
    top = page.locator("#inspection").bounding_box()["y"]
    assert -5 < top < 200
    assert page.locator("#inspection .maps img").count() == 6
    assert [each for each in noted if not each.startswith(("data:", "file:"))] == []
    page.close()

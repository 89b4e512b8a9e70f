"""Draws an abstract portrait from a name or a key: the picture of a character that has none."""

from __future__ import annotations

import colorsys
import io
from collections.abc import Callable
from random import Random

from PIL import Image, ImageChops, ImageDraw

SIDE = 400
# Drawn this many times larger and made smaller: that is what makes edges smooth.
SCALE = 3
NUM_COLOURS = 96
Colour = tuple[int, int, int]
Box = tuple[float, float, float, float]

SKINS: tuple[Colour, ...] = (
    (255, 224, 196),
    (241, 194, 155),
    (217, 160, 118),
    (172, 116, 79),
    (126, 80, 56),
)
HAIR: tuple[Colour, ...] = ((38, 33, 45), (74, 48, 38), (140, 84, 48), (206, 160, 88), (96, 104, 124), (232, 228, 222))


def draw_portrait(name: str) -> bytes:
    """A PNG of 400 × 400 pixels, always the same for a name."""
    random = Random(name)
    hue = random.random()
    canvas = _background(hue, random)
    _person(canvas, hue, random)
    small = canvas.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    written = io.BytesIO()
    small.quantize(NUM_COLOURS, dither=Image.Dither.NONE).save(written, "PNG", optimize=True)
    return written.getvalue()


def _tone(hue: float, saturation: float, value: float) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def _mix(first: Colour, second: Colour, share: float) -> Colour:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


def _box(x: float, y: float, width: float, height: float) -> Box:
    """A box around a centre, in pixels of the picture, as the large canvas has it."""
    return (x - width / 2) * SCALE, (y - height / 2) * SCALE, (x + width / 2) * SCALE, (y + height / 2) * SCALE


def _points(*points: tuple[float, float]) -> list[tuple[float, float]]:
    return [(x * SCALE, y * SCALE) for x, y in points]


def _background(hue: float, random: Random) -> Image.Image:
    """One of a few quiet scenes in the tones of one colour."""
    light, deep = _tone(hue, 0.22, 0.97), _tone(hue + 0.03, 0.42, 0.82)
    canvas = Image.new("RGB", (SIDE * SCALE, SIDE * SCALE), light)
    scene: Callable[[ImageDraw.ImageDraw, Colour, Colour, Random], None] = random.choice((_rings, _hills, _rays, _dots))
    scene(ImageDraw.Draw(canvas), light, deep, random)
    return canvas


def _rings(draw: ImageDraw.ImageDraw, light: Colour, deep: Colour, random: Random) -> None:
    x, y = random.uniform(60, 340), random.uniform(60, 180)
    for step in range(7):
        draw.ellipse(_box(x, y, 640 - step * 88, 640 - step * 88), fill=_mix(light, deep, 0.12 + step * 0.09))


def _hills(draw: ImageDraw.ImageDraw, light: Colour, deep: Colour, random: Random) -> None:
    x = random.choice((85, 315))
    draw.ellipse(_box(x, 95, 110, 110), fill=_mix(light, (255, 255, 255), 0.7))
    for step in range(4):
        shift = random.uniform(-90, 90)
        draw.ellipse(_box(200 + shift, 430 + step * 45, 760, 480), fill=_mix(light, deep, 0.3 + step * 0.22))


def _rays(draw: ImageDraw.ImageDraw, light: Colour, deep: Colour, random: Random) -> None:
    turn = random.uniform(0, 30)
    for step in range(12):
        draw.pieslice(_box(200, 230, 900, 900), turn + step * 30, turn + step * 30 + 15, fill=_mix(light, deep, 0.4))
    draw.ellipse(_box(200, 190, 330, 330), fill=_mix(light, deep, 0.62))


def _dots(draw: ImageDraw.ImageDraw, light: Colour, deep: Colour, random: Random) -> None:
    for row in range(9):
        for column in range(9):
            size = 6 + 3.4 * row
            x = column * 50 + (25 if row % 2 else 0)
            draw.ellipse(_box(x, row * 50, size, size), fill=_mix(light, deep, 0.35 + row * 0.05))


def _person(canvas: Image.Image, hue: float, random: Random) -> None:
    """Shoulders, neck, head and hair as flat shapes, lit from the left."""
    skin, hair = random.choice(SKINS), random.choice(HAIR)
    cloth, accent = _tone(hue + 0.5, 0.52, 0.62), _tone(hue + 0.42, 0.45, 0.93)
    draw = ImageDraw.Draw(canvas)
    style = random.choice((_short, _bob, _bun, _curls, _swept))
    style(draw, hair, behind=True)
    draw.rounded_rectangle(_box(200, 425, 270, 240), radius=105 * SCALE, fill=cloth)
    random.choice((_collar, _scarf, _lapels))(draw, cloth, accent)
    draw.rounded_rectangle(_box(200, 282, 62, 96), radius=28 * SCALE, fill=_mix(skin, (90, 40, 40), 0.22))
    draw.ellipse(_box(137, 212, 30, 42), fill=_mix(skin, (90, 40, 40), 0.12))
    draw.ellipse(_box(263, 212, 30, 42), fill=_mix(skin, (90, 40, 40), 0.18))
    _head(canvas, skin)
    style(ImageDraw.Draw(canvas), hair, behind=False)
    _face(ImageDraw.Draw(canvas), skin, accent, random)


def _head(canvas: Image.Image, skin: Colour) -> None:
    mask, shade = Image.new("L", canvas.size, 0), Image.new("L", canvas.size, 0)
    ImageDraw.Draw(mask).rounded_rectangle(_box(200, 205, 128, 164), radius=64 * SCALE, fill=255)
    ImageDraw.Draw(shade).ellipse(_box(170, 195, 190, 240), fill=255)
    canvas.paste(skin, mask=mask)
    canvas.paste(_mix(skin, (90, 40, 40), 0.13), mask=ImageChops.subtract(mask, shade))


def _face(draw: ImageDraw.ImageDraw, skin: Colour, accent: Colour, random: Random) -> None:
    """Closed, smiling eyes and a small mouth; some wear glasses."""
    line = _mix(skin, (40, 20, 35), 0.78)
    for x in (174, 226):
        draw.arc(_box(x, 212, 24, 18), 200, 340, fill=line, width=5 * SCALE)
        draw.arc(_box(x, 190, 30, 14), 205, 335, fill=_mix(skin, line, 0.7), width=4 * SCALE)
        draw.ellipse(_box(x + (x - 200) * 0.25, 237, 24, 14), fill=_mix(skin, (240, 90, 90), 0.28))
    draw.arc(_box(200, 240, 14, 12), 30, 150, fill=_mix(skin, line, 0.45), width=4 * SCALE)
    draw.arc(_box(200, 254, 40, 24), 25, 155, fill=line, width=5 * SCALE)
    if random.random() < 0.4:
        frame = _mix(accent, (30, 25, 40), 0.75)
        for x in (174, 226):
            draw.ellipse(_box(x, 212, 44, 42), outline=frame, width=4 * SCALE)
        draw.line(_points((196, 209), (204, 209)), fill=frame, width=4 * SCALE)


def _short(draw: ImageDraw.ImageDraw, hair: Colour, *, behind: bool) -> None:
    if not behind:
        draw.chord(_box(200, 180, 140, 128), 180, 360, fill=hair)
        draw.chord(_box(172, 168, 92, 62), 150, 400, fill=hair)
        draw.rounded_rectangle(_box(137, 188, 15, 40), radius=7 * SCALE, fill=hair)
        draw.rounded_rectangle(_box(263, 188, 15, 40), radius=7 * SCALE, fill=hair)


def _bob(draw: ImageDraw.ImageDraw, hair: Colour, *, behind: bool) -> None:
    if behind:
        draw.rounded_rectangle(_box(200, 215, 182, 200), radius=84 * SCALE, fill=_mix(hair, (0, 0, 0), 0.18))
    else:
        draw.chord(_box(200, 182, 146, 136), 178, 362, fill=hair)
        draw.ellipse(_box(160, 174, 72, 46), fill=hair)
        draw.ellipse(_box(232, 174, 86, 42), fill=hair)


def _bun(draw: ImageDraw.ImageDraw, hair: Colour, *, behind: bool) -> None:
    if behind:
        draw.ellipse(_box(200, 102, 74, 66), fill=_mix(hair, (0, 0, 0), 0.12))
    else:
        draw.chord(_box(200, 180, 142, 126), 176, 364, fill=hair)
        draw.ellipse(_box(150, 178, 26, 56), fill=hair)
        draw.ellipse(_box(250, 178, 26, 56), fill=hair)


def _curls(draw: ImageDraw.ImageDraw, hair: Colour, *, behind: bool) -> None:
    outer = ((134, 205), (136, 168), (154, 136), (184, 120), (216, 120), (246, 136), (264, 168), (266, 205))
    inner = ((150, 160), (172, 144), (200, 138), (228, 144), (250, 160))
    for x, y in outer if behind else inner:
        draw.ellipse(_box(x, y, 56, 54), fill=_mix(hair, (0, 0, 0), 0.16) if behind else hair)


def _swept(draw: ImageDraw.ImageDraw, hair: Colour, *, behind: bool) -> None:
    if behind:
        draw.rounded_rectangle(_box(200, 255, 190, 280), radius=92 * SCALE, fill=_mix(hair, (0, 0, 0), 0.2))
    else:
        draw.chord(_box(200, 184, 144, 140), 180, 360, fill=hair)
        draw.polygon(_points((132, 184), (150, 140), (236, 122), (250, 142), (206, 176)), fill=hair)
        draw.ellipse(_box(140, 205, 24, 84), fill=hair)
        draw.ellipse(_box(261, 205, 24, 84), fill=hair)


def _collar(draw: ImageDraw.ImageDraw, cloth: Colour, accent: Colour) -> None:
    draw.ellipse(_box(200, 318, 112, 54), fill=_mix(cloth, (0, 0, 0), 0.2))
    draw.polygon(_points((146, 318), (200, 372), (172, 392), (132, 330)), fill=accent)
    draw.polygon(_points((254, 318), (200, 372), (228, 392), (268, 330)), fill=accent)


def _scarf(draw: ImageDraw.ImageDraw, cloth: Colour, accent: Colour) -> None:
    draw.rounded_rectangle(_box(200, 326, 132, 46), radius=22 * SCALE, fill=accent)
    draw.rounded_rectangle(_box(236, 372, 40, 110), radius=12 * SCALE, fill=_mix(accent, cloth, 0.25))


def _lapels(draw: ImageDraw.ImageDraw, cloth: Colour, accent: Colour) -> None:
    draw.polygon(_points((158, 306), (242, 306), (200, 400)), fill=_mix(accent, (255, 255, 255), 0.5))
    draw.polygon(_points((158, 304), (200, 400), (150, 400), (120, 322)), fill=_mix(cloth, (0, 0, 0), 0.28))
    draw.polygon(_points((242, 304), (200, 400), (250, 400), (280, 322)), fill=_mix(cloth, (0, 0, 0), 0.28))

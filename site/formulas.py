"""Formulas for pages without a script: from TeX to the part of MathML that all browsers show."""

import re
import unicodedata

from latex2mathml.converter import convert


def mathml(tex: str, display: str) -> str:
    """Convert a formula; `display`: "inline" or "block". Raises ValueError if a TeX command would be left in it."""
    tex = tex.replace(r"\lfloor", "⌊").replace(r"\rfloor", "⌋")  # unknown to latex2mathml after \Big
    text = convert(tex, display=display)
    for pattern, repair in REPAIRS:
        text = re.sub(pattern, repair, text)
    if "\\" in text:
        raise ValueError(f"latex2mathml does not know all of this formula: {tex}")
    return text


def spaced(m: re.Match) -> str:
    """Return a function's name with TeX's thin spaces: before it after a factor, after it unless a bracket follows."""
    before, name, bracket = m.groups(default="")
    thin = '<mspace width="0.17em" />'
    name = re.sub("(</?)mo", r"\1mi", name)  # upright, and with no spaces of its own
    return f"{before}{thin * bool(before)}{name}{thin * (not bracket)}"


def script(m: re.Match) -> str:
    """Return a capital in the script of \\mathcal. Some are older than the rest of that alphabet, with other names."""
    name = f"SCRIPT CAPITAL {m[1]}"
    try:
        return f"<mi>{unicodedata.lookup(f'MATHEMATICAL {name}')}</mi>"
    except KeyError:
        return f"<mi>{unicodedata.lookup(name)}</mi>"


NAME = r"<m[io]>(?!mod<)[a-z]{2,}</m[io]>"
PRIME = '<mo lspace="0" rspace="0">′</mo>'

# Patterns that latex2mathml writes and browsers do not show as TeX does, and their replacements.
REPAIRS = [
    (rf"(</m[in]>|</msub>)?(<msub>{NAME}.*?</msub>|{NAME})(?=(<mo[^>]*>(?:&#x00028;|[(\[]))?)", spaced),
    (r'<mi mathvariant="script">([A-Z])</mi>', script),
    (r"<mi>&#x0007E;</mi>", "<mo>∼</mo>"),  # \sim
    (r"<mo>&#x0005E;</mo>", '<mo stretchy="false">ˆ</mo>'),  # \hat
    (r"<msup>(<mi>\w</mi>)<mi>&#x02032;</mi></msup>", rf"\1{PRIME}"),  # raised already
    (r"<msubsup>(<mi>\w</mi>)(.*?)<mi>&#x02032;</mi></msubsup>", rf"<msub><mrow>\1{PRIME}</mrow>\2</msub>"),
    (r"<mo>&#x0002F;</mo>", '<mo lspace="0" rspace="0">/</mo>'),
    (r"<msub>(<mo>&#x02211;</mo><mi>\w</mi>)</msub>", r"<munder>\1</munder>"),  # a sum over a brace
    (r"<mi>(&#x000[46][1-9A-F];|&#x000[57][0-9A];)</mi>", r'<mi mathvariant="normal">\1</mi>'),  # \mathrm{d}
    (r'<mrow>((?:<mi mathvariant="normal">\w</mi>)+)</mrow>', lambda m: f"<mi>{re.sub('<.+?>', '', m[1])}</mi>"),
    ("negativethinmathspace", "-0.17em"),
]

"""Text as LaTeX prints it, whatever is in it, and the packages that it takes."""

import re
import unicodedata
from itertools import groupby

from pylatexenc.latexencode import UnicodeToLatexEncoder

ASCII = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "`": r"\textasciigrave{}",
}
OURS = {"±": r"$\pm$", "…": r"\ldots{}", "†": r"$^{\dagger}$"}
# Blocks whose letters and symbols LaTeX has without further packages, and what it lacks of them.
LATIN_AND_GREEK = (range(0x00A0, 0x0180), range(0x0370, 0x0400))
PUNCTUATION_AND_MATHS = (range(0x2000, 0x3000),)
LACKING = "ŉΐϒϰ϶"
IN_T1 = re.compile(r"\\(guillemotleft|guillemotright|DH|TH|dh|th|k|DJ|dj|NG|ng)\b")
# Runs of characters that are neither in the tables above nor ASCII.
OTHER = re.compile(r"[^\x00-\x7f]+")
IN_FONT = re.compile(r"\\ifdefined\\Umathchar ([^\\]+)")
ENCODER = UnicodeToLatexEncoder(unknown_char_policy="keep", unknown_char_warning=False)


def escape_latex(text: str) -> str:
    """Return text as LaTeX prints it, also at the start of a line of a table, where a bracket would be an option.

    Characters that pdfLaTeX cannot print without further packages, such as Chinese ones, are their code points there;
    XeLaTeX and LuaLaTeX print them, with a font that has them. What is never visible is its code points in all three.
    """
    escaped = "".join(map(_character, unicodedata.normalize("NFC", text)))
    escaped = OTHER.sub(lambda found: _by_engine(found[0]), escaped)
    if re.match(r"-\d", escaped):
        return f"$-${escaped[1:]}"
    return f"{{}}{escaped}" if escaped.startswith(("[", "*")) else escaped


def needed_packages(latex: str) -> str:
    """Return the comment that names the packages of a table, and what its font must have."""
    encoding = r" and \usepackage[T1]{fontenc}" if IN_T1.search(latex) else ""
    letters = "".join(sorted(set("".join(IN_FONT.findall(latex)))))
    font = f"; in XeLaTeX and LuaLaTeX also a font with {letters}" if letters else ""
    return rf"% Needs \usepackage{{booktabs}}{encoding}{font}."


def _character(character: str) -> str:
    if character.isascii():
        return ASCII.get(character, character)
    if character in OURS:
        return OURS[character]
    blocks = (*LATIN_AND_GREEK, *PUNCTUATION_AND_MATHS)
    is_known = any(ord(character) in block for block in blocks) and character not in LACKING
    return str(ENCODER.unicode_to_latex(character)) if is_known else character


def _by_engine(characters: str) -> str:
    parts = [(shown, "".join(each)) for shown, each in groupby(characters, str.isprintable)]
    return "".join(_printed(each) if shown else _code_points(each) for shown, each in parts)


def _printed(characters: str) -> str:
    return rf"{{\ifdefined\Umathchar {characters}\else {_code_points(characters)}\fi}}"


def _code_points(characters: str) -> str:
    return " ".join(f"U+{ord(each):04X}" for each in characters)

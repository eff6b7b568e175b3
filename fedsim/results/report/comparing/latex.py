"""Text as LaTeX prints it, whatever is in it, and the packages that it takes."""

import re
import unicodedata

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
ENCODER = UnicodeToLatexEncoder(unknown_char_policy="keep", unknown_char_warning=False)


def escape_latex(text: str) -> str:
    """Return text as LaTeX prints it, also at the start of a line of a table, where a bracket would be an option.

    Characters that pdfLaTeX cannot print without further packages, such as Chinese ones, are their code points there;
    XeLaTeX and LuaLaTeX print them, with a font that has them.
    """
    escaped = "".join(map(_character, unicodedata.normalize("NFC", text)))
    escaped = OTHER.sub(lambda found: _by_engine(found[0]), escaped)
    if re.match(r"-\d", escaped):
        return f"$-${escaped[1:]}"
    return f"{{}}{escaped}" if escaped.startswith(("[", "*")) else escaped


def needed_packages(latex: str) -> str:
    """Return the comment that names the packages of a table."""
    encoding = r" and \usepackage[T1]{fontenc}" if IN_T1.search(latex) else ""
    return rf"% Needs \usepackage{{booktabs}}{encoding}."


def _character(character: str) -> str:
    if character.isascii():
        return ASCII.get(character, character)
    if character in OURS:
        return OURS[character]
    blocks = (*LATIN_AND_GREEK, *PUNCTUATION_AND_MATHS)
    is_known = any(ord(character) in block for block in blocks) and character not in LACKING
    return str(ENCODER.unicode_to_latex(character)) if is_known else character


def _by_engine(characters: str) -> str:
    points = " ".join(f"U+{ord(each):04X}" for each in characters)
    return rf"{{\ifdefined\Umathchar {characters}\else {points}\fi}}"

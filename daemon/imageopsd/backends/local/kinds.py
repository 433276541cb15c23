"""What a source is that is no image archive, in words of ours.

Its own bytes never stand in an error text: whoever may name a source would read the begin of files and of answers
that only this host can reach.
"""

import re
from codecs import getincrementaldecoder

HEAD = 512
"""Bytes that suffice to tell a kind; as far as the magic of a tar."""

_MAGICS = {
    b"PK\x03\x04": "a zip archive",
    b"PK\x05\x06": "a zip archive",  # an empty one
    b"\xfd7zXZ\0": "an xz archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
    b"BZh": "a bzip2 archive",
    b"QFI\xfb": "a qcow2 image",
    b"KDMV": "a VMDK image",
    b"# Disk DescriptorFile": "a VMDK image",
}
_TAR = slice(257, 262)
_HTML = re.compile(rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype\s+html|html|head|body)\b", re.IGNORECASE)
_XML = re.compile(r"<(?:\?xml|!--|[a-z])", re.IGNORECASE)
_MEDIA_TYPE = re.compile(r"[\w!#$%&'*+.^`|~-]{1,64}/[\w!#$%&'*+.^`|~-]{1,64}", re.ASCII)
"""RFC 9110, 8.3.1: a token, a slash, a token."""


def kind_of(head: bytes) -> str:
    """What completes the sentence "it is", for something that begins with `head`."""
    if not head:
        return "empty"
    for magic, kind in _MAGICS.items():
        if head.startswith(magic):
            return kind
    if head[_TAR] == b"ustar":
        return "a plain tar archive"
    if _HTML.match(head):
        return "an HTML page"
    try:
        # incremental: the head may end in the middle of a character
        text = getincrementaldecoder("utf-8-sig")().decode(head)
    except UnicodeDecodeError:
        return "unknown data"
    if not all(c.isprintable() or c in "\t\n\f\r" for c in text):
        return "unknown data"
    text = text.lstrip()
    if _XML.match(text):
        return "XML"
    return "JSON" if text.startswith(("{", "[")) else "text"


def media_type(content_type: str | None) -> str | None:
    """The type in a Content-Type, without its parameters; `None` if there is nothing of that form."""
    name = (content_type or "").partition(";")[0].strip()
    return name if _MEDIA_TYPE.fullmatch(name) else None

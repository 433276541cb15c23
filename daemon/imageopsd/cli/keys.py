"""`imageopsd keys`: what callers wrap their keys with."""

from pathlib import Path

import click

from imageopsd.cli.exits import Exit, Failure
from imageopsd.cli.options import configured
from imageopsd.config import Loaded
from imageopsd.keys import Keyring
from imageopsd.model.errors import Unavailable


@click.group()
def keys() -> None:
    """Look after the keys that customers' keys are sealed and wrapped with."""


@keys.command()
@configured
def public(loaded: Loaded) -> None:
    """Print the public key that an `rsaEncryptedKey` is wrapped with, as PEM; it is made when it is first asked for.

    \b
        openssl rand 32 | openssl pkeyutl -encrypt -pubin -inkey public.pem -pkeyopt rsa_padding_mode:oaep | base64 -w0
    """
    data_dir = Path(loaded.settings.data_dir)
    if not data_dir.is_dir():
        raise Failure(Exit.NOT_FOUND, f"there is no data directory {data_dir}; name it with --data-dir")
    try:
        click.echo(Keyring(data_dir).public_key(), nl=False)
    except Unavailable as error:
        raise Failure(Exit.FAILED, str(error)) from None

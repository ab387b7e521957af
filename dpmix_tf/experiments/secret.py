"""The secret that the seeds of an experiment's runs are derived from.

Runs of different arms with the same seed number draw the same noise, so that their
differences are paired; nobody else may know it. So an experiment's folder holds one
secret, drawn from the operating system and readable by its owner alone. A seed number
(1, 2, ... in results.jsonl and the report) becomes a seed of 128 bits by HMAC-SHA256
under that secret.

What may be known, and is written beside the results, is the secret's fingerprint: runs
of two secrets are not paired, and are not put together by mistake.
"""

import dataclasses
import hashlib
import hmac
import json
import os
import secrets
from pathlib import Path
from typing import Any

from dpmix_tf.errors import DPMixError
from dpmix_tf.files import cannot_write, write_atomic, write_text_atomic
from dpmix_tf.training.workdir import read_json

FILE = "secret.json"
PAIRING = "pairing.json"  # of one run: whose number it is, under which secret
FINGERPRINT = "secret_fingerprint"
_BYTES = 32


@dataclasses.dataclass(frozen=True)
class Secret:
    """The key of an experiment's seeds; it is never shown or logged.

    Attributes:
      key: 32 bytes.
    """

    key: bytes = dataclasses.field(repr=False)

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that tell secrets apart and reveal nothing of them."""
        text = b"dpmix_tf/fingerprint of an experiment's secret/" + self.key
        return hashlib.sha256(text).hexdigest()[:16]

    def seed(self, purpose: str, number: int) -> int:
        """Derives the seed of a number.

        Args:
          purpose: "tuning" or "test": they share no seed, even under one number.
          number: of the seed, the same in all arms, epsilons and trials.

        Returns:
          An int in [0, 2**128).
        """
        text = f"dpmix_tf/experiment/{purpose}/{number}".encode()
        digest = hmac.new(self.key, text, hashlib.sha256).digest()
        return int.from_bytes(digest[:16], "big")


def open_secret(root: Path, *, public: bool, draw: bool = True) -> Secret | None:
    """Returns the secret of an experiment's folder, drawn if it is a new one.

    The caller holds the folder's lock.

    Args:
      root: the folder.
      public: the seeds are public numbers: there is no secret.
      draw: whether a new folder may draw its own, rather than be given another's.

    Returns:
      The secret; None for public seeds.

    Raises:
      DPMixError: the folder's runs have the other kind of seeds or another secret; or
        the secret is missing, damaged, or cannot be written.
    """
    begun = (root / "experiment.json").exists()
    known = read_json(root / "experiment.json").get(FINGERPRINT) if begun else None
    if begun and public != (known is None):
        raise DPMixError(
            f"The runs in {root} have {'secret' if public else 'public'} seeds, and "
            "one experiment cannot mix both. "
            + ("Leave out --public_seeds" if public else "Say --public_seeds")
            + ", or use another --workdir."
        )
    if public:
        return None
    path = root / FILE
    if not path.exists():
        if begun:
            raise DPMixError(
                f"{path} is gone: without it, new runs would not be paired with those "
                f"that are there. Put it back (fingerprint {known}), or use another "
                "--workdir."
            )
        if not draw:
            raise DPMixError(
                f"All shards need one secret, or their differences are not paired: "
                f"start --shard=1/n first, and copy its {FILE} to {path}."
            )
        text = json.dumps({"secret": secrets.token_hex(_BYTES)}) + "\n"
        write_atomic(path, lambda file: file.write(text.encode()), private=True)
    secret = _load(path)
    if begun and secret.fingerprint != known:
        raise DPMixError(
            f"{path} is another secret (fingerprint {secret.fingerprint}) than the one "
            f"that the runs there were made with ({known}): new runs would not be "
            "paired with them. Put the old one back, or use another --workdir."
        )
    return secret


def write_pairing(
    root: Path, folder: Path, secret: Secret, *, purpose: str, number: int
) -> None:
    """Notes in a run's folder, for its process, which seed it has; not the seed.

    Args:
      root: the experiment's folder, which holds the secret.
      folder: the run's, below it.
      secret: the experiment's.
      purpose: see Secret.seed.
      number: see Secret.seed.
    """
    about = {
        "purpose": purpose,
        "number": number,
        "secret": os.path.relpath(root / FILE, folder),
        FINGERPRINT: secret.fingerprint,
    }
    write_text_atomic(folder / PAIRING, json.dumps(about, indent=2) + "\n")


def seed_of_run(folder: Path) -> int | None:
    """Returns the secret seed of the run in a folder; None: its config says.

    Raises:
      DPMixError: the secret is missing, or another one.
    """
    about = _pairing(folder)
    if about is None:
        return None
    secret = _load(folder / about["secret"])
    if secret.fingerprint != about[FINGERPRINT]:
        raise DPMixError(
            f"{folder} was begun under another secret (fingerprint "
            f"{about[FINGERPRINT]}) than {folder / about['secret']}."
        )
    return secret.seed(about["purpose"], about["number"])


def refuse_unpaired(folder: Path, secret: Secret | None) -> None:
    """Refuses a run that was made under another secret than its experiment's.

    Args:
      folder: the run's; it need not be there.
      secret: the experiment's; None: its seeds are public.

    Raises:
      DPMixError: see above.
    """
    if not (folder / "settings.json").exists():  # not begun
        return
    theirs = (_pairing(folder) or {}).get(FINGERPRINT)
    mine = secret.fingerprint if secret else None
    if theirs != mine:
        words = [f"secret {one}" if one else "public seeds" for one in (theirs, mine)]
        raise DPMixError(
            f"{folder} was made with {words[0]}, the experiment around it with "
            f"{words[1]}: their differences are not paired. Runs of several machines "
            f"need the same {FILE} from the start: move this one to another folder."
        )


def _pairing(folder: Path) -> dict[str, Any] | None:
    path = folder / PAIRING
    return read_json(path) if path.exists() else None


def _load(path: Path) -> Secret:
    """Reads a secret; a copy that others could read is closed to them."""
    try:
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
        text = path.read_bytes()
    except FileNotFoundError as error:
        raise DPMixError(f"{path} is missing: put it back.") from error
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        key = bytes.fromhex(json.loads(text)["secret"])
    except (ValueError, TypeError, KeyError, RecursionError):
        key = b""
    if len(key) != _BYTES:  # without its text, which is secret
        raise DPMixError(
            f"{path} does not hold a secret of {_BYTES} bytes. It was changed or "
            "damaged: restore it, or use another --workdir."
        )
    return Secret(key)

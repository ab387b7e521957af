"""The secret that the seeds of an experiment's runs are derived from.

Runs of different arms with the same seed number draw the same noise, so that their
differences are paired; nobody else may know that noise. An experiment's folder
therefore holds one secret, drawn from the operating system and readable only by its
owner. HMAC-SHA256 under that secret turns a seed number (1, 2, ... in results.jsonl and
the report) into a seed of 128 bits.

The secret's fingerprint may be known, and is written beside the results. It prevents
runs under different secrets, which are not paired, from being combined by mistake.
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
PAIRING = "pairing.json"  # of one run: its seed's purpose and number, and the secret
FINGERPRINT = "secret_fingerprint"
_BYTES = 32


@dataclasses.dataclass(frozen=True)
class Secret:
    """The key that an experiment's seeds are derived from; never shown or logged.

    Attributes:
      key: 32 bytes.
    """

    key: bytes = dataclasses.field(repr=False)

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that identify the secret without revealing it."""
        text = b"dpmix_tf/fingerprint of an experiment's secret/" + self.key
        return hashlib.sha256(text).hexdigest()[:16]

    def seed(self, purpose: str, number: int) -> int:
        """Derives the seed for a seed number.

        Args:
          purpose: "tuning" or "test"; their seeds differ even for the same number.
          number: the seed's number, the same in all arms, epsilons and trials.

        Returns:
          An int in [0, 2**128).
        """
        text = f"dpmix_tf/experiment/{purpose}/{number}".encode()
        digest = hmac.new(self.key, text, hashlib.sha256).digest()
        return int.from_bytes(digest[:16], "big")


def open_secret(root: Path, *, public: bool, draw: bool = True) -> Secret | None:
    """Returns the secret of an experiment's folder; draws it if the folder is new.

    The caller must hold the folder's lock.

    Args:
      root: the folder.
      public: whether the seeds are public numbers, so that there is no secret.
      draw: whether a new folder may draw its own secret; otherwise it needs a copy.

    Returns:
      The secret; None for public seeds.

    Raises:
      DPMixError: the folder's runs have the other kind of seeds or a different secret,
        or the secret is missing or damaged, or cannot be written.
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
                f"{path} is gone: without it, new runs would not be paired with the "
                f"existing ones. Put it back (fingerprint {known}), or use another "
                "--workdir."
            )
        if not draw:
            raise DPMixError(
                f"All shards need the same secret, or their differences are not "
                f"paired: start --shard=1/n first, and copy its {FILE} to {path}."
            )
        text = json.dumps({"secret": secrets.token_hex(_BYTES)}) + "\n"
        write_atomic(path, lambda file: file.write(text.encode()), private=True)
    secret = _load(path)
    if begun and secret.fingerprint != known:
        raise DPMixError(
            f"{path} holds a different secret (fingerprint {secret.fingerprint}) than "
            f"the one that the existing runs were made with ({known}): new runs would "
            "not be paired with them. Put the old one back, or use another --workdir."
        )
    return secret


def write_pairing(
    root: Path, folder: Path, secret: Secret, *, purpose: str, number: int
) -> None:
    """Records in a run's folder which seed its process must derive, not the seed.

    Args:
      root: the experiment's folder, which holds the secret.
      folder: the run's folder, below `root`.
      secret: the experiment's secret.
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
    """Returns the secret seed of the run in a folder; None if its config sets the seed.

    Raises:
      DPMixError: the secret is missing, or it is a different one.
    """
    about = _pairing(folder)
    if about is None:
        return None
    secret = _load(folder / about["secret"])
    if secret.fingerprint != about[FINGERPRINT]:
        raise DPMixError(
            f"{folder} was started with a different secret (fingerprint "
            f"{about[FINGERPRINT]}) than {folder / about['secret']}."
        )
    return secret.seed(about["purpose"], about["number"])


def refuse_unpaired(folder: Path, secret: Secret | None) -> None:
    """Refuses a run that was made under a different secret than its experiment's.

    Args:
      folder: the run's folder; it need not exist.
      secret: the experiment's secret; None if its seeds are public.

    Raises:
      DPMixError: the secrets differ.
    """
    if not (folder / "settings.json").exists():  # not started
        return
    theirs = (_pairing(folder) or {}).get(FINGERPRINT)
    mine = secret.fingerprint if secret else None
    if theirs != mine:
        words = [f"secret {one}" if one else "public seeds" for one in (theirs, mine)]
        raise DPMixError(
            f"{folder} was made with {words[0]}, but the experiment around it uses "
            f"{words[1]}: their differences are not paired. Runs on several machines "
            f"need the same {FILE} from the start: move this one to another folder."
        )


def _pairing(folder: Path) -> dict[str, Any] | None:
    path = folder / PAIRING
    return read_json(path) if path.exists() else None


def _load(path: Path) -> Secret:
    """Reads a secret; if others can read the file, removes their permission."""
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
    if len(key) != _BYTES:  # the message leaves out the text, which is secret
        raise DPMixError(
            f"{path} does not hold a secret of {_BYTES} bytes. It has been changed or "
            "damaged: restore it, or use another --workdir."
        )
    return Secret(key)

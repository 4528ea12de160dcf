"""Where Inception's weights come from, without keeping an offline machine waiting."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path

from sfd_cli.errors import UserError
from sfd_cli.weights.fetch import cache_folder, fetch_weights
from sfd_cli.weights.registry import Https, find_weights

NAME = "inception_v3"
PATIENCE_SECONDS = 5.0


def inception_weights() -> Path:
    """The weights file, fetched if it is not here yet.

    A download is patient with a bad connection, but these weights are optional: where the server cannot even be
    reached within seconds, none is tried.

    Raises:
        UserError: they cannot be had; says why.
    """
    from torch.hub import get_dir

    weights = find_weights(NAME)
    places = (cache_folder() / weights.file, Path(get_dir()) / "checkpoints" / weights.file)
    if not any(place.exists() for place in places):
        assert isinstance(weights.source, Https)
        advice = f"`sfd weights fetch {NAME}` says which file to put where"
        try:
            urllib.request.urlopen(weights.source.url, timeout=PATIENCE_SECONDS).close()
        except urllib.error.HTTPError as error:
            raise UserError(weights.source, f"answered HTTP {error.code} {error.reason}", advice) from None
        except OSError as error:
            reason = getattr(error, "reason", error)
            raise UserError(weights.source, f"cannot be reached ({reason})", advice) from None
    return fetch_weights(weights)

"""A saved pipeline in a repository of the Hugging Face hub, by huggingface_hub: its token, mirror and proxies hold."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfd_cli.errors import UserError

REPOSITORY_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Upload:
    """One folder to one repository; see `SemanticFirstPipeline.push_to_hub` for the attributes.

    Raises:
        UserError: the name is none of a repository.
    """

    repository: str
    private: bool | None = None
    revision: str | None = None
    message: str = ""
    token: str | None = None
    api: Any = None

    def __post_init__(self) -> None:
        if not REPOSITORY_NAME.fullmatch(str(self.repository)):
            raise UserError(self.repository, "is no name of a hub repository", "give owner/name")

    def require_repository(self) -> None:
        """Make the repository, and the branch, where there is none.

        Raises:
            UserError: the hub refuses or cannot be reached.
        """
        self._asked(lambda api: api.create_repo(self.repository, private=self.private, exist_ok=True))
        branch = self.revision
        if branch is not None:
            self._asked(lambda api: api.create_branch(self.repository, branch=branch, exist_ok=True))

    def send(self, folder: Path) -> str:
        """Upload all of the folder in one commit; gives its address.

        Raises:
            UserError: the hub refuses or cannot be reached.
        """
        made = self._asked(
            lambda api: api.upload_folder(
                repo_id=self.repository, folder_path=folder, revision=self.revision, commit_message=self.message
            )
        )
        return str(made.commit_url)

    def _asked(self, ask: Callable[[Any], Any]) -> Any:
        from huggingface_hub import HfApi

        try:
            return ask(self.api or HfApi(token=self.token))
        except Exception as error:  # of the HTTP library below, which has changed between versions
            said = " ".join(str(error).split())[:300]
            remedy = "`hf auth login` or HF_TOKEN says who you are; the repository must be yours to write"
            raise UserError(self.repository, f"could not be written on the hub ({said})", remedy) from None

"""A repository on the Hugging Face hub: config first, then only the files that are needed, into the hub's own cache."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlxport.errors import DiskError, MlxportError, SourceError, UnsupportedError, WeightsError
from mlxport.source.leftover_quantization import names_quantization, without_leftover_quantization
from mlxport.source.local_folder import CheckConfig, ReadFile, load_config, open_folder
from mlxport.source.open_clip_config import OPEN_CLIP, config_name
from mlxport.source.safetensors_file import header_length, parse_header
from mlxport.source.weight_files import WeightFiles, choose_weight_files, explain_no_config, read_index, side_names
from mlxport.types import Checkpoint, TensorRef

CheckHeaders = Callable[[Checkpoint], None]

# Most headers fit into the first request.
_FIRST_RANGE = 256 * 1024


def open_repository(
    repo_id: str,
    revision: str | None = None,
    trust_remote_code: bool = False,
    check_config: CheckConfig | None = None,
    headers_only: bool = False,
    check_headers: CheckHeaders | None = None,
    *,
    endpoint: str | None = None,
    cache_dir: Path | None = None,
) -> Checkpoint:
    """The checkpoint in a repository; arguments as in ``open_checkpoint``.

    Args:
        repo_id: ``org/name``.
        revision: Branch, tag or commit.
        trust_remote_code: Fetch Python files too.
        check_config: Called with the config before anything else but the list of files is fetched.
        headers_only: Fetch the headers of weight files only.
        check_headers: Called with the checkpoint as its headers have it before weights are fetched; not where they are
            in the cache already, or their headers cannot be had without them.
        endpoint: Address of the hub; by default as ``HF_ENDPOINT`` says.
        cache_dir: Where files are kept; by default as ``HF_HOME`` and ``HF_HUB_CACHE`` say.

    Raises:
        SourceError: The hub cannot be reached, refuses, or has no such repository or revision; or as ``open_folder``.
        DiskError: Too little space for the files.
    """
    repository = _Repository(repo_id, revision, endpoint, cache_dir)
    listed = repository.list_files()
    if listed is None:
        root = repository.cached_root()
        return open_folder(
            root,
            check_config=check_config,
            trust_remote_code=trust_remote_code,
            repo_id=repo_id,
            revision=root.name,
        )
    described = config_name(listed)
    if described not in listed:
        raise explain_no_config(listed, repo_id)
    root = repository.fetch_config(described)
    config, _ = load_config(root, listed, check_config)
    layout, weights = _needed_weights(repository, listed)
    if check_config is not None and names_quantization(config):
        check_config(_by_the_headers(repository, config, weights) if layout.kind == "safetensors" else config)
    side = [name for name in side_names(listed) if trust_remote_code or not name.endswith(".py")]
    if headers_only and layout.kind != "safetensors":
        raise UnsupportedError(
            f"{repo_id} holds torch files only, whose headers cannot be read from afar",
            hint="download it, or convert it without looking first",
        )
    fetched = side if headers_only else [*side, *weights]
    repository.check_space({name: listed[name] for name in fetched})
    for name in side:
        repository.fetch(name)

    def opened(read_file: ReadFile | None) -> Checkpoint:
        return open_folder(
            root,
            trust_remote_code=trust_remote_code,
            repo_id=repo_id,
            revision=repository.commit,
            names=[described, *side, *weights, *([layout.index] if layout.index else [])],
            read_file=read_file,
        )

    if headers_only:
        return opened(repository.read_header)
    missing = [name for name in weights if not repository.has(name)]
    if missing and check_headers is not None and layout.kind == "safetensors":
        with suppress(_NoRanges):
            check_headers(opened(repository.read_header))
    for name in missing:
        repository.fetch(name)
    return opened(None)


def _by_the_headers(repository: _Repository, config: dict[str, Any], weights: list[str]) -> dict[str, Any]:
    """The config without a quantization that the weights, as their headers have them, do not have."""
    tensors = [repository.read_header(repository.root / name)[0] for name in weights]
    return without_leftover_quantization(config, {name: ref for held in tensors for name, ref in held.items()})[0]


def _needed_weights(repository: _Repository, listed: Mapping[str, int]) -> tuple[WeightFiles, list[str]]:
    """How the weights are laid out, and the names of their files; fetches the index, if there is one."""
    layout = choose_weight_files(listed, repository.repo_id)
    if layout.index is None:
        return layout, [*layout.files]
    repository.fetch(layout.index)
    weights = [*dict.fromkeys(read_index(repository.root, layout.index).values())]
    missing = [name for name in weights if name not in listed]
    if missing:
        raise WeightsError(
            f"{repository.repo_id}: the shard {missing[0]}, which {layout.index} names, is missing",
            hint="the repository is incomplete; try another revision",
        )
    return layout, weights


@dataclass
class _Repository:
    """One repository at one revision; every error of the hub leaves as one of ours."""

    repo_id: str
    revision: str | None
    endpoint: str | None
    cache_dir: Path | None
    commit: str | None = None
    root: Path = field(default_factory=Path, repr=False)
    _unreachable: str = field(default="", repr=False)

    def list_files(self) -> dict[str, int] | None:
        """File names to sizes, and the commit that they are of; None if the hub cannot be reached."""
        from huggingface_hub import HfApi

        if self.revision is not None and (not self.revision or ".." in self.revision):
            raise SourceError(f"{self.revision!r} is not a revision", hint="give a branch, a tag or a commit")
        try:
            with self._translated():
                info = HfApi(endpoint=self.endpoint).model_info(
                    self.repo_id, revision=self.revision, files_metadata=True
                )
        except _Unreachable as error:
            self._unreachable = error.message
            return None
        self.commit = info.sha
        return {file.rfilename: file.size or 0 for file in info.siblings or ()}

    def cached_root(self) -> Path:
        """The snapshot that an earlier run has left."""
        from huggingface_hub import try_to_load_from_cache

        cached = (
            try_to_load_from_cache(self.repo_id, name, cache_dir=self.cache_dir, revision=self.revision)
            for name in ("config.json", OPEN_CLIP)
        )
        path = next((path for path in cached if isinstance(path, str)), None)
        if path is None:
            raise SourceError(
                f"{self.repo_id!r} is no folder here and not in the hub's cache, and the hub cannot be reached "
                f"({self._unreachable})",
                hint="check the connection, unset HF_HUB_OFFLINE, or give a local folder",
            )
        return Path(path).parent

    def fetch_config(self, name: str) -> Path:
        """The snapshot folder, once what describes the model is in it."""
        # By branch, not by commit: so the cache remembers which commit the branch was at, for when there is no network.
        self.commit = self.revision
        self.root = self.fetch(name).parent
        self.commit = self.root.name
        return self.root

    def fetch(self, name: str) -> Path:
        """The file in the cache, downloaded unless it is there."""
        from huggingface_hub import hf_hub_download

        with self._translated(name):
            path = hf_hub_download(
                self.repo_id, name, revision=self.commit, endpoint=self.endpoint, cache_dir=self.cache_dir
            )
        return Path(path)

    def has(self, name: str) -> bool:
        """Whether a file is in the cache."""
        from huggingface_hub import try_to_load_from_cache

        path = try_to_load_from_cache(self.repo_id, name, cache_dir=self.cache_dir, revision=self.commit)
        return isinstance(path, str)

    def check_space(self, sizes: Mapping[str, int]) -> None:
        """Raise DiskError if what is not in the cache yet does not fit beside it."""
        from huggingface_hub import constants

        cache = Path(self.cache_dir or constants.HF_HUB_CACHE)
        needed = sum(size for name, size in sizes.items() if not self.has(name))
        free = shutil.disk_usage(cache).free
        if needed > free:
            raise DiskError(
                f"{self.repo_id} needs {needed / 1e9:.1f} GB in {cache}, {free / 1e9:.1f} GB are free",
                hint="free some space, or set HF_HOME to a larger disk",
            )

    def read_header(self, path: Path) -> tuple[dict[str, TensorRef], list[str]]:
        """The tensors of a safetensors file that stays on the hub."""
        name = path.relative_to(self.root).as_posix()
        start, size = self._range(name, 0, _FIRST_RANGE)
        end = 8 + header_length(start, size, path)
        if end > len(start):
            start += self._range(name, len(start), end)[0]
        return parse_header(start[8:end], size, path), []

    def _range(self, name: str, begin: int, end: int) -> tuple[bytes, int]:
        """Bytes of a file on the hub, fewer where it ends before, and its size."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import (  # type: ignore[attr-defined]
            build_hf_headers,
            get_session,
            hf_raise_for_status,
        )

        url = hf_hub_url(self.repo_id, name, revision=self.commit, endpoint=self.endpoint)
        headers = {**build_hf_headers(), "Range": f"bytes={begin}-{end - 1}", "Accept-Encoding": "identity"}
        with (
            self._translated(name),
            get_session().stream("GET", url, headers=headers, follow_redirects=True) as response,
        ):
            hf_raise_for_status(response)
            total = response.headers.get("Content-Range", "").rpartition("/")[2]
            if response.status_code != 206 or not total.isdecimal():
                raise _NoRanges(f"the hub sends {name} only as a whole", hint="download it first")
            return response.read(), int(total)

    @contextmanager
    def _translated(self, name: str = "") -> Iterator[None]:
        try:
            yield
        except MlxportError:
            raise
        except Exception as error:
            ours = self._explained(error, name)
            if ours is None:
                raise  # a bug, not the hub
            raise ours from error

    def _explained(self, error: Exception, name: str = "") -> MlxportError | None:
        """Our error for one that huggingface_hub raises; None for what is none of its."""
        from huggingface_hub import errors

        what = f"{self.repo_id}/{name}" if name else self.repo_id
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        for kind, message, hint in (
            (
                errors.GatedRepoError,
                f"{self.repo_id} is gated, and your account has no access to it",
                f"accept its terms at https://huggingface.co/{self.repo_id}, then run `hf auth login`",
            ),
            (errors.DisabledRepoError, f"{self.repo_id} was disabled by the hub", "use another copy of the model"),
            (
                errors.RepositoryNotFoundError,
                f"{self.repo_id!r} is neither a folder here nor a repository on the hub that you may read",
                "check the spelling; for a private repository run `hf auth login`",
            ),
            (
                errors.RevisionNotFoundError,
                f"{self.repo_id} has no revision {self.revision!r}",
                "give a branch, a tag or a full commit hash; without a revision it is the main branch",
            ),
            (errors.HFValidationError, f"{self.repo_id!r} is not a hub id", "a hub id has the form org/name"),
            (errors.HfHubHTTPError, f"the hub refuses {what}: {why}", "wait and run again, or run `hf auth login`"),
        ):
            if isinstance(error, kind):
                return SourceError(message, hint=hint)
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            return DiskError(f"the disk became full while {what} was fetched", hint="free some space and run again")
        # No answer at all. huggingface_hub 1 is built on httpx, 2 on httpx2: the base of its own errors tells which.
        if isinstance(error, (errors.HfHubHTTPError.__mro__[1], errors.OfflineModeIsEnabled)):
            return _Unreachable("HF_HUB_OFFLINE is set" if isinstance(error, errors.OfflineModeIsEnabled) else why)
        if isinstance(error, (OSError, ValueError, errors.XetDownloadError)):
            return SourceError(f"{what} cannot be fetched: {why}", hint="check the connection and run again")
        return None


class _NoRanges(SourceError):
    """The hub sends files only as a whole: a header cannot be had without its weights."""


class _Unreachable(SourceError):
    """The hub gives no answer; ``message`` says why."""

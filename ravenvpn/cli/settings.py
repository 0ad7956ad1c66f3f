"""The agent's settings as click options, and the one way from flags, variables and file to `AgentConfig`.

click resolves the precedence: the file's values become the defaults of the options (`default_map`), a variable beats
a default and a flag beats a variable. `config.build` then checks the result, whatever its origin.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from ravenvpn.config import (
    CONFIG_FILE,
    SETTINGS,
    STATE_DIRECTORY,
    AgentConfig,
    ConfigReader,
    build,
    read_file,
)

# A click command or the function that becomes one.
Command = TypeVar("Command", bound=Callable[..., Any])

# Keys of click's Context.meta.
CONFIG_KEY = "ravenvpn.config"  # dict of setting → value, of whatever origin
CONFIG_PATH_KEY = "ravenvpn.config_path"  # Path of the file, whether it exists or not
CONFIG_NAMED_KEY = "ravenvpn.config_named"  # bool: --config or RAVENVPN_CONFIG was given


def state_dir_option(what: str) -> Callable[[Command], Command]:
    """Return the option `--state-dir` with the help text `what`, for a verb that takes no other setting."""
    return click.option(
        "--state-dir",
        type=click.Path(path_type=Path, file_okay=False),
        default=STATE_DIRECTORY,
        show_default=True,
        envvar="RAVENVPN_STATE_DIR",
        help=what,
    )


def _load_file(ctx: click.Context, _: click.Parameter, path: Path | None) -> Path:
    """Read the file and make its values the defaults of the options. Eager: click calls this before all others."""
    chosen = path or CONFIG_FILE
    # The default file may be absent; one that was named must exist.
    ctx.default_map = read_file(chosen) if path or chosen.exists() else {}
    ctx.meta[CONFIG_PATH_KEY], ctx.meta[CONFIG_NAMED_KEY] = chosen, path is not None
    return chosen


def agent_settings(command: Command) -> Command:
    """Decorate a click command with one option for each setting, and --config.

    Each option also reads `RAVENVPN_<NAME>`, and the variable that the setting names besides. The values are not
    passed to the function but stored in the context, where `config_of` takes them."""
    # Reversed, since the last decorator applied is the first option in the help text.
    for name, setting in reversed(SETTINGS.items()):
        variables = [f"RAVENVPN_{name.upper()}"]
        if extra := setting.metadata.get("env"):
            variables.append(extra)
        flag = "--" + name.replace("_", "-")
        kind: Any = type(setting.default)
        if "choices" in setting.metadata:
            kind = click.Choice(setting.metadata["choices"])
        # Defaults are shown unless they are empty; the help texts say what empty means.
        command = click.option(
            f"{flag}/--no-{flag[2:]}" if kind is bool else flag,
            name,
            type=kind,
            default=setting.default,
            show_default=setting.default != "",
            envvar=list(dict.fromkeys(variables)),
            help=setting.metadata["help"],
            expose_value=False,
            callback=_collect,
        )(command)
    return click.option(
        "--config",
        type=click.Path(path_type=Path, dir_okay=False),
        is_eager=True,
        expose_value=False,
        callback=_load_file,
        envvar="RAVENVPN_CONFIG",
        help=f"Configuration file.  [default: {CONFIG_FILE} if it exists]",
    )(command)


def _collect(ctx: click.Context, parameter: click.Parameter, value: Any) -> Any:
    """Store an option's value in the context."""
    assert parameter.name is not None
    ctx.meta.setdefault(CONFIG_KEY, {})[parameter.name] = value
    return value


def config_of(ctx: click.Context) -> AgentConfig:
    """Return the configuration of this context, checked as a whole. Raises ConfigError that names the setting."""
    return build(ctx.meta[CONFIG_KEY])


def config_reader(ctx: click.Context) -> ConfigReader:
    """Return a reader of the same file that keeps the flags and variables of this context.

    They are fixed for the life of the process, so they keep precedence whatever the file gets later."""
    fixed = (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT)
    overrides = {
        name: value for name, value in ctx.meta[CONFIG_KEY].items() if ctx.get_parameter_source(name) in fixed
    }
    return ConfigReader(ctx.meta[CONFIG_PATH_KEY], ctx.meta[CONFIG_NAMED_KEY], overrides)


def origins(ctx: click.Context) -> dict[str, str]:
    """Return the origin of each setting's value: "flag", "variable", "file PATH" or "default"."""
    words = {
        ParameterSource.COMMANDLINE: "flag",
        ParameterSource.ENVIRONMENT: "variable",
        ParameterSource.DEFAULT_MAP: f"file {ctx.meta[CONFIG_PATH_KEY]}",
        ParameterSource.DEFAULT: "default",
    }
    return {
        name: words.get(source, "default") if (source := ctx.get_parameter_source(name)) else "default"
        for name in SETTINGS
    }

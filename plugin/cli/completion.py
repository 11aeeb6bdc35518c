"""``cameleer completion``: scripts that complete commands and options, made from the tables of the options."""

from __future__ import annotations

from collections.abc import Sequence

from cameleer.cli.options import Command, Group, Option, UsageError, parser_of

SHELLS = ("bash", "zsh", "fish")
_DRIVERS = "drivers"  # asked by the scripts, so it is not in the help

COMMAND = Command(
    name="completion",
    help="print a completion script for a shell",
    synopsis="bash|zsh|fish",
    description="Print a script that completes the commands and options of cameleer.",
    epilog="""\
examples:
  cameleer completion bash >~/.local/share/bash-completion/completions/cameleer
  cameleer completion zsh  >~/.zfunc/_cameleer          (with fpath+=~/.zfunc before compinit)
  cameleer completion fish >~/.config/fish/completions/cameleer.fish""",
    groups=(Group("options", ()),),
)


def main(argv: Sequence[str]) -> int:
    """Run ``cameleer completion``."""
    parser = parser_of(COMMAND)
    parser.add_argument("shell", nargs="?", choices=(*SHELLS, _DRIVERS), help="the shell")
    shell = parser.parse_args(list(argv)).shell
    if shell is None:
        raise UsageError(f"cameleer completion needs the name of a shell: {', '.join(SHELLS)}")
    if shell == _DRIVERS:
        print("\n".join(_driver_names()))
    else:
        print(script(shell), end="", flush=True)
    return 0


def _driver_names() -> list[str]:
    from cameleer.plugins import Plugins
    from cameleer.settings import Settings

    return sorted(Plugins(Settings()).drivers())


def commands() -> list[Command]:
    """All built-in commands."""
    from cameleer.cli import drivers, gc, run, watch

    return [run.COMMAND, watch.COMMAND, drivers.COMMAND, gc.COMMAND, COMMAND]


def script(shell: str) -> str:
    """The completion script of a shell."""
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell]()


def _flags(command: Command) -> list[str]:
    return [*(option.flag for option in command.options), "--help"]


def _with_value(command: Command) -> list[Option]:
    return [option for option in command.options if option.metavar and option.flag != "--no-plugins"]


def _bash() -> str:
    names = " ".join(command.name for command in commands())
    cases = "\n".join(_bash_case(command) for command in commands())
    return f"""\
# bash completion of cameleer; made by `cameleer completion bash`
_cameleer() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD-1]}} position=1 command
    COMPREPLY=()
    while [[ $position -lt $COMP_CWORD && ${{COMP_WORDS[position]}} == -* ]]; do ((position++)); done
    if [[ $position -eq $COMP_CWORD ]]; then
        COMPREPLY=($(compgen -W "{names} --no-plugins --version --help" -- "$cur"))
        return
    fi
    command=${{COMP_WORDS[position]}}
    case $command in
{cases}
    esac
}}
complete -F _cameleer cameleer
"""


_BASH_VALUES = {
    "file": 'COMPREPLY=($(compgen -f -- "$cur"))',
    "directory": 'COMPREPLY=($(compgen -d -- "$cur"))',
    "user": 'COMPREPLY=($(compgen -u -- "$cur"))',
    "driver": 'COMPREPLY=($(compgen -W "$(cameleer completion drivers 2>/dev/null)" -- "$cur"))',
    "nothing": "",
}


def _bash_case(command: Command) -> str:
    values: dict[str, list[str]] = {}
    for option in _with_value(command):
        values.setdefault(_BASH_VALUES[option.complete], []).extend(option.words)
    lines = [f"    {command.name})"]
    if command.takes_command:
        valued = "|".join(word for option in _with_value(command) for word in option.words)
        lines += [
            "        ((position++))",
            "        while [[ $position -lt $COMP_CWORD ]]; do",
            "            case ${COMP_WORDS[position]} in",
            "            --) ((position++)); break ;;",
            f"            {valued}) ((position += 2)) ;;",
            "            -*) ((position++)) ;;",
            "            *) break ;;",
            "            esac",
            "        done",
            "        if [[ $position -lt $COMP_CWORD ]]; then  # inside the user's own command",
            "            if declare -F _command_offset >/dev/null; then _command_offset $position",
            '            else COMPREPLY=($(compgen -f -- "$cur")); fi',
            "            return",
            "        fi",
        ]
    if values:
        lines.append("        case $prev in")
        lines += [f"        {'|'.join(flags)}) {do + '; ' if do else ''}return ;;" for do, flags in values.items()]
        lines.append("        esac")
    words = " ".join([*_flags(command), *(SHELLS if command is COMMAND else ())])
    other = "compgen -c" if command.takes_command else f'compgen -W "{words}"'
    lines += [
        f'        if [[ $cur == -* ]]; then COMPREPLY=($(compgen -W "{words}" -- "$cur"))',
        f'        else COMPREPLY=($({other} -- "$cur")); fi ;;',
    ]
    return "\n".join(lines)


_ZSH_VALUES = {
    "file": "_files",
    "directory": "_files -/",
    "user": "_users",
    "driver": "_cameleer_drivers",
    "nothing": " ",
}


def _zsh_quoted(text: str) -> str:
    for letter in "\\[]:":
        text = text.replace(letter, f"\\{letter}")
    return text.replace("'", "'\\''")


def _zsh() -> str:
    listed = "\n".join(f"        '{command.name}:{_zsh_quoted(command.help)}'" for command in commands())
    cases = "\n".join(_zsh_case(command) for command in commands())
    return f"""\
#compdef cameleer
# zsh completion of cameleer; made by `cameleer completion zsh`
_cameleer_drivers() {{
    local expl
    _wanted drivers expl driver compadd -- ${{(f)"$(cameleer completion drivers 2>/dev/null)"}}
}}
_cameleer() {{
    local curcontext="$curcontext" state line
    local -a subcommands
    subcommands=(
{listed}
    )
    _arguments -C \\
        '--no-plugins=-[load no plugin but the built-in ones]' \\
        '(- *)--version[show the version]' \\
        '(- *)--help[show the help]' \\
        '1:command:->command' \\
        '*::: :->arguments' && return
    case $state in
    command) _describe command subcommands ;;
    arguments)
        words=("$line[1]" "${{words[@]}}")
        ((CURRENT++))
        case $line[1] in
{cases}
        esac ;;
    esac
}}
_cameleer "$@"
"""


def _zsh_case(command: Command) -> str:
    lines = [f"        {command.name})", "            _arguments -S \\"]
    for option in command.options:
        star = "*" if option.repeat else ""
        text = _zsh_quoted(option.help)
        if option.flag == "--no-plugins":
            lines.append(f"                '{option.flag}=-[{text}]' \\")
        elif option.metavar:
            value = _ZSH_VALUES[option.complete]
            end = f"[{text}]:{_zsh_quoted(option.metavar)}:{value}' \\"
            lines.append(f"                '{star}{option.flag}={end}")
            if option.short:
                lines.append(f"                '{star}{option.short}+{end}")
        else:
            lines.append(f"                '{star}{option.flag}[{text}]' \\")
    lines.append("                '(- *)--help[show the help]' \\")
    rest = {
        "run": "'*::command:_normal'",
        "watch": "'*:process:_pids'",
        "completion": f"'1:shell:({' '.join(SHELLS)})'",
    }
    if command.name in rest:
        lines.append(f"                {rest[command.name]} \\")
    return "\n".join([*lines[:-1], lines[-1].removesuffix(" \\") + " ;;"])


_FISH_VALUES = {
    "file": "-r -F",
    "directory": "-x -a '(__fish_complete_directories)'",
    "user": "-x -a '(__fish_complete_users)'",
    "driver": "-x -a '(cameleer completion drivers 2>/dev/null)'",
    "nothing": "-x",
}


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _fish() -> str:
    lines = [
        "# fish completion of cameleer; made by `cameleer completion fish`",
        "complete -c cameleer -f",
        "complete -c cameleer -n __fish_use_subcommand -l version -d 'show the version'",
        "complete -c cameleer -n __fish_use_subcommand -l no-plugins -d 'load no plugin but the built-in ones'",
        "complete -c cameleer -l help -d 'show the help'",
    ]
    for command in commands():
        lines.append(f"complete -c cameleer -n __fish_use_subcommand -a {command.name} -d {_fish_quoted(command.help)}")
    for command in commands():
        seen = f"-n '__fish_seen_subcommand_from {command.name}'"
        for option in command.options:
            value = _FISH_VALUES[option.complete] if option in _with_value(command) else ""
            lines.append(
                " ".join(
                    part
                    for part in (
                        f"complete -c cameleer {seen} -l {option.flag[2:]}",
                        f"-s {option.short[1:]}" if option.short else "",
                        value,
                        f"-d {_fish_quoted(option.help)}",
                    )
                    if part
                )
            )
        if command.takes_command:
            lines.append(f"complete -c cameleer {seen} -x -a '(__fish_complete_subcommand)'")
        if command.name == "watch":
            lines.append(f"complete -c cameleer {seen} -x -a '(__fish_complete_pids)'")
        if command is COMMAND:
            lines.append(f"complete -c cameleer {seen} -x -a '{' '.join(SHELLS)}'")
    return "\n".join(lines) + "\n"

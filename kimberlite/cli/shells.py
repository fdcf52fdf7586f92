"""Scripts that complete `kimberlite` in a shell: what the parser takes, written out in the shell's own words."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from shlex import quote
from typing import Final

#: What stands for a path in the parser.
DIRECTORIES: Final = frozenset({"TARGET", "DIR"})
FILES: Final = frozenset({"FILE", "PATH"})

BASH: Final = """\
_kimberlite() {
    local command= option= offered= plain= glued= place=0 word each words=()
    # What readline has split at "=" and ":" is one word.
    for each in "${COMP_WORDS[@]:1:COMP_CWORD}"; do
        if ((${#words[@]})) && [[ $glued || $each == [=:]* ]]; then
            words[-1]+=$each
        else
            words+=("$each")
        fi
        glued=
        [[ $each && ! ${each//[=:]/} ]] && glued=1
    done
    word=${words[-1]}
    for each in "${words[@]:0:${#words[@]}-1}"; do
        if [[ $option ]]; then
            option=
        elif [[ ! $plain && $each == -- ]]; then
            plain=1
        elif [[ ! $plain && $each == -?* ]]; then
            case "$command $each" in
                @TAKING@) option=$each ;;
            esac
        elif [[ $command ]]; then
            place=$((place + 1))
        else
            command=$each
        fi
    done
    if [[ ! $option && ! $plain && $word == --*=* ]]; then
        option=${word%%=*}
        word=${word#*=}
    elif [[ ! $option && ! $plain && $word == -* ]]; then
        option=-
    fi
    # A URL is no path.
    [[ $word == *://* ]] && return
    case "$command ${option:-$place}" in
        @ARMS@
    esac
    mapfile -t COMPREPLY < <(compgen -W "$offered" -- "$word")
}
complete -F _kimberlite kimberlite
"""

ZSH: Final = """\
#compdef kimberlite
_kimberlite() {
    local curcontext=$curcontext state line ret=1
    local -a commands
    local -A opt_args
    commands=(
        @COMMANDS@
    )
    _arguments -C -S \\
        @TOP@'1: :->command' \\
        '*:: :->arguments' && ret=0
    case "$state $words[1]" in
        'command '*) _describe -t commands command commands && ret=0 ;;
        @ARMS@
    esac
    return ret
}
if [[ $funcstack[1] == _kimberlite ]]; then
    _kimberlite "$@"
else
    compdef _kimberlite kimberlite
fi
"""

FISH: Final = """\
# Whether this command is given and, if a number follows, so many arguments of it.
function __kimberlite_at
    set -l command
    set -l option
    set -l plain
    set -l place 0
    for word in (commandline -opc)[2..]
        if test -n "$option"
            set option
        else if test -z "$plain" -a "$word" = --
            set plain 1
        else if test -z "$plain"; and string match -q -- '-?*' $word
            contains -- "$command $word" @TAKING@
            and set option $word
        else if test -n "$command"
            set place (math $place + 1)
        else
            set command $word
        end
    end
    test "$command" = "$argv[1]"
    and test -z "$argv[2]" -o "$argv[2]" = $place
end
complete -c kimberlite -f
@LINES@
"""


def commands(top: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """All parsers by their commands; without one it is the top."""
    [table] = [action for action in top._actions if isinstance(action, argparse._SubParsersAction)]
    return {"": top} | dict(table.choices)


def options(command: argparse.ArgumentParser) -> list[argparse.Action]:
    return [action for action in command._actions if action.option_strings]


def places(command: argparse.ArgumentParser) -> list[argparse.Action]:
    return [action for action in command._actions if not action.option_strings]


def flags(command: argparse.ArgumentParser) -> list[str]:
    return [flag for action in options(command) for flag in action.option_strings]


def taking(top: argparse.ArgumentParser) -> Iterator[str]:
    """Each option that is followed by a value, behind its command."""
    for name, command in commands(top).items():
        for action in options(command):
            yield from (f"{name} {flag}" for flag in action.option_strings if action.nargs != 0)


def offered(action: argparse.Action, words: str, file: str, directory: str) -> str:
    """What is taken at a place or as an option's value, in one shell's words; nothing where only the user knows."""
    if action.choices is not None:
        return words.format(" ".join(map(str, action.choices)))
    return directory if action.metavar in DIRECTORIES else file if action.metavar in FILES else ""


def summary(action: argparse.Action) -> str:
    return (action.help or "") % (vars(action) | {"prog": "kimberlite"})


def bash(top: argparse.ArgumentParser) -> str:
    patterns = " | ".join(map(quote, taking(top)))
    arms = [arm for name, command in commands(top).items() for arm in bash_arms(name, command)]
    return BASH.replace("@TAKING@", patterns).replace("@ARMS@", "\n        ".join(arms))


def bash_arms(name: str, command: argparse.ArgumentParser) -> Iterator[str]:
    """Where no further argument is taken flags are offered, as behind a dash."""
    for keys, action in bash_keys(command):
        patterns = " | ".join(quote(f"{name} {key}") for key in keys)
        taken = offered(action, "offered='{}'", "compopt -o default", "compopt -o dirnames")
        yield f"{patterns}) {taken or ':'} ;;"
    yield f"'{name} -' | '{name} '[0-9]*) offered={quote(' '.join(flags(command)))} ;;"


def bash_keys(command: argparse.ArgumentParser) -> Iterator[tuple[Sequence[str], argparse.Action]]:
    yield from ((action.option_strings, action) for action in options(command) if action.nargs != 0)
    yield from (([str(place)], action) for place, action in enumerate(places(command)))


def zsh(top: argparse.ArgumentParser) -> str:
    table = commands(top)
    above = "".join(f"{spec} \\\n        " for action in options(table.pop("")) for spec in zsh_options(action))
    named = [quote(f"{name}:{command.description}") for name, command in table.items()]
    arms = [arm for name, command in table.items() for arm in zsh_arm(name, command)]
    script = ZSH.replace("@COMMANDS@", "\n        ".join(named)).replace("@TOP@", above)
    return script.replace("@ARMS@", "\n        ".join(arms))


def zsh_arm(name: str, command: argparse.ArgumentParser) -> Iterator[str]:
    specs = [spec for action in options(command) for spec in zsh_options(action)]
    specs += [quote(f"{number}{zsh_value(action)}") for number, action in enumerate(places(command), 1)]
    yield f"'arguments {name}')"
    yield f"    curcontext=${{curcontext%:*:*}}:kimberlite-{name}:"
    yield "    _arguments -s -S \\"
    yield from (f"        {spec} \\" for spec in specs)
    yield "        && ret=0 ;;"


def zsh_options(action: argparse.Action) -> Iterator[str]:
    repeated = isinstance(action, argparse._AppendAction)
    others = "*" if repeated else f"({' '.join(action.option_strings)})"
    value = "" if action.nargs == 0 else zsh_value(action)
    for flag in action.option_strings:
        equals = "=" if value and flag.startswith("--") else ""
        yield quote(f"{others}{flag}{equals}[{zsh_text(summary(action))}]{value}")


def zsh_value(action: argparse.Action) -> str:
    name = str(action.metavar or action.dest)
    return f":{zsh_text(name)}:{offered(action, '({})', '_files', '_directories') or '()'}"


def zsh_text(text: str) -> str:
    return re.sub(r"([\\:\[\]])", r"\\\1", text)


def fish(top: argparse.ArgumentParser) -> str:
    lines = [line for name, command in commands(top).items() for line in fish_lines(name, command)]
    script = FISH.replace("@TAKING@", " ".join(map(fish_text, taking(top))))
    return script.replace("@LINES@", "\n".join(f"complete -c kimberlite {line}" for line in lines))


def fish_lines(name: str, command: argparse.ArgumentParser) -> Iterator[str]:
    given = f"__kimberlite_at {name or fish_text('')}"
    for action in options(command):
        yield f"-n {fish_text(given)} {fish_option(action)} -d {fish_text(summary(action))}"
    for place, action in enumerate(places(command)):
        here = fish_text(f"{given} {place}")
        if isinstance(action, argparse._SubParsersAction):
            for each, parser in action.choices.items():
                yield f"-n {here} -a {each} -d {fish_text(parser.description or '')}"
        elif taken := fish_offered(action):
            yield f"-n {here} {taken}"


def fish_option(action: argparse.Action) -> str:
    names = [f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}" for flag in action.option_strings]
    takes = [] if action.nargs == 0 else ["-r", fish_offered(action) or "-f"]
    return " ".join(names + takes)


def fish_offered(action: argparse.Action) -> str:
    return offered(action, "-f -a '{}'", "-F", "-f -a '(__fish_complete_directories)'")


def fish_text(text: str) -> str:
    """In single quotes, which end at another one only."""
    return "'" + re.sub(r"(['\\])", r"\\\1", text) + "'"


SCRIPTS: Final = {"bash": bash, "zsh": zsh, "fish": fish}

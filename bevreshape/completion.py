"""Completion of ``bevreshape`` in shells: commands by a list, their arguments by Hydra's own completion."""

import shlex
from collections.abc import Mapping

BASH = """\
# eval "$(bevreshape completion bash)"
_bevreshape() {
    local line="${COMP_LINE:0:COMP_POINT}" found one matched
    local word="${line##*[[:space:]]}"
    local before="${word%"$2"}"  # bash ends a word at = and :
    if ((COMP_CWORD == 1)); then
        found='@names@'
    else
        found="$(COMP_LINE="$line" "$1" "${COMP_WORDS[1]}" -sc query=fish 2>/dev/null)"
    fi
    COMPREPLY=()
    while IFS= read -r one; do  # compgen -W would expand the words; what needs quotes is left out
        if [[ $one == "$word"* && ! $one =~ [^[:alnum:]_.=/+~@,:-] && ! ($one == "$word" && $one == *[=.]) ]]; then
            COMPREPLY+=("${one#"$before"}")
            matched=$one
        fi
    done <<<"$found"
    if ((COMP_CWORD > 1)) && [[ $matched != *=* || $matched == *[=/] ]]; then  # no finished argument
        compopt -o nospace
    fi
}
complete -o default -F _bevreshape bevreshape"""

ZSH = """\
# eval "$(bevreshape completion zsh)", after compinit
_bevreshape() {
    local -a found
    if ((CURRENT == 2)); then
        found=(@described@)
        _describe command found
        return
    fi
    found=(${(f)"$(COMP_LINE="${(j: :)words[1,CURRENT-1]} $PREFIX" $words[1] $words[2] -sc query=fish 2>/dev/null)"})
    [[ $PREFIX == *[=.] ]] && found=(${found:#$PREFIX})
    compadd -S '' -- ${found:#*=*[^=/]}
    compadd -- ${(M)found:#*=*[^=/]}
    if ((! compstate[nmatches])); then
        compset -P '*='
        _files
    fi
}
compdef _bevreshape bevreshape"""

FISH = """\
# bevreshape completion fish | source
function __bevreshape
    set -lx COMP_LINE (commandline -cp)
    set -l words (commandline -opc)
    $words[1] $words[2] -sc query=fish 2>/dev/null
end
complete -c bevreshape -n 'test (count (commandline -opc)) -gt 1' -a '(__bevreshape)'
@lines@"""

SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}


def completion_script(shell: str, summaries: Mapping[str, str]) -> str:
    """Return the script that completes ``bevreshape`` in a shell.

    Args:
        shell: ``bash``, ``zsh`` or ``fish``.
        summaries: of the commands, by name.
    """
    first = "complete -c bevreshape -f -n 'test (count (commandline -opc)) -eq 1'"
    return (
        SCRIPTS[shell]
        .replace("@names@", "\n".join(summaries))
        .replace("@described@", " ".join(shlex.quote(f"{name}:{line}") for name, line in summaries.items()))
        .replace("@lines@", "\n".join(f"{first} -a {name} -d {_quoted(line)}" for name, line in summaries.items()))
    )


def _quoted(text: str) -> str:
    """Quote a text for fish, in which a backslash quotes within quotes."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"

# bash completion for spawn, rootfs, idmap, usernet and cgdelegate. Options and commands are read from the program's own
# --help, so that they are those of the program that is installed.
# shellcheck shell=bash

# Options in the usage and the option list of a help text, one a line.
_userns_helpers_options() {
  awk '/^[Uu]sage/ { usage = 1 } /^ *$/ { usage = 0 }
    usage || /^ *-/ {
      line = $0
      if (!usage) { sub(/^ +/, "", line); sub(/   *.*/, "", line) }
      while (match(line, /--[a-z][a-z0-9-]*/)) { print substr(line, RSTART, RLENGTH); line = substr(line, RSTART + RLENGTH) }
    }' | sort -u
}

# Commands in a help text: the list "Commands:", or the usage lines.
_userns_helpers_commands() { # PROGRAM
  awk -v program="$1" '/^Commands:/ { list = 1; next } /^ *$/ { list = 0; if (usage) exit } /^usage:/ { usage = 1; sub(/^usage:/, "") }
    list && /^  [a-z]/ { print $1 }
    usage && $1 == program && $2 ~ /^[a-z]+$/ { print $2 }' | sort -u
}

# Names of the containers of the user.
_userns_helpers_containers() {
  local path
  for path in "${XDG_DATA_HOME:-$HOME/.local/share}"/spawn/*/; do
    path=${path%/}
    [ ! -e "$path" ] || printf '%s\n' "${path##*/}"
  done
}

_userns_helpers() {
  local program=${COMP_WORDS[0]} name current=${COMP_WORDS[COMP_CWORD]} command='' sub='' word words='' i
  name=${program##*/}
  COMPREPLY=()
  for ((i = 1; i < COMP_CWORD; i++)); do
    word=${COMP_WORDS[i]}
    if [ "$word" = -- ]; then
      # What follows is a command of the container.
      mapfile -t COMPREPLY < <(compgen -c -f -- "$current")
      return
    fi
    case $word in
    -*) ;;
    *) if [ -z "$command" ]; then command=$word; elif [ "$name:$command" = spawn:autostart ]; then sub=${sub:-$word}; fi ;;
    esac
  done
  if [ -z "$command" ]; then
    words=$("$program" --help 2>/dev/null </dev/null | _userns_helpers_commands "$name")
  fi
  case $current in
  -*)
    # shellcheck disable=SC2086  # no word, or one each
    if [ "$name" = spawn ] || [ "$name" = rootfs ]; then set -- $command $sub --help; else set -- --help; fi
    words=$("$program" "$@" 2>/dev/null </dev/null | _userns_helpers_options)
    ;;
  *)
    if [ "$name:$command:$sub" = spawn:autostart: ]; then
      words=$("$program" autostart --help 2>/dev/null </dev/null | _userns_helpers_commands spawn)
      command=''
    elif [ -n "$command" ]; then
      case $name in spawn | rootfs) words=$(_userns_helpers_containers) ;; esac
      case $name:$command in spawn:run | spawn:hold) words+=$'\n'host ;; esac
    fi
    ;;
  esac
  mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
  case $current in
  -*) ;;
  *)
    [ -z "$command" ] || { compopt -o filenames 2>/dev/null; mapfile -t -O ${#COMPREPLY[@]} COMPREPLY < <(compgen -f -- "$current"); }
    ;;
  esac
}
complete -F _userns_helpers spawn rootfs idmap usernet cgdelegate

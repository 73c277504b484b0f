# fish completion for spawn, rootfs, idmap, usernet and cgdelegate. Options and commands are read from the program's own
# --help, so that they are those of the program that is installed.

function __userns_helpers_options
    awk '/^[Uu]sage/ { usage = 1 } /^ *$/ { usage = 0 }
    usage || /^ *-/ {
      line = $0
      if (!usage) { sub(/^ +/, "", line); sub(/   *.*/, "", line) }
      while (match(line, /--[a-z][a-z0-9-]*/)) { print substr(line, RSTART, RLENGTH); line = substr(line, RSTART + RLENGTH) }
    }' | sort -u
end

function __userns_helpers_commands
    awk -v program="$argv[1]" '/^Commands:/ { list = 1; next } /^ *$/ { list = 0; if (usage) exit } /^usage:/ { usage = 1; sub(/^usage:/, "") }
    list && /^  [a-z]/ { print $1 }
    usage && $1 == program && $2 ~ /^[a-z]+$/ { print $2 }' | sort -u
end

function __userns_helpers_containers
    set -l data $XDG_DATA_HOME
    test -n "$data"; or set data ~/.local/share
    for path in $data/spawn/*/
        path basename $path 2>/dev/null; or basename $path
    end
end

function __userns_helpers
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    set -l program $words[1]
    set -l name (string replace -r '.*/' '' -- $program)
    set -l command
    set -l sub
    for word in $words[2..-1]
        if test "$word" = --
            __fish_complete_command
            return
        end
        if not string match -q -- '-*' $word
            if test -z "$command"
                set command $word
            else if test $name:$command = spawn:autostart -a -z "$sub"
                set sub $word
            end
        end
    end
    if string match -q -- '-*' $current
        set -l ask
        if contains $name spawn rootfs
            set ask $command $sub
        end
        $program $ask --help 2>/dev/null </dev/null | __userns_helpers_options
    else if test -z "$command"
        $program --help 2>/dev/null </dev/null | __userns_helpers_commands $name
    else if test $name:$command = spawn:autostart -a -z "$sub"
        $program autostart --help 2>/dev/null </dev/null | __userns_helpers_commands $name
    else
        if contains $name spawn rootfs
            __userns_helpers_containers
        end
        if contains $name:$command spawn:run spawn:hold
            echo host
        end
        __fish_complete_path $current
    end
end

for program in spawn rootfs idmap usernet cgdelegate
    complete -c $program -f -a '(__userns_helpers)'
end

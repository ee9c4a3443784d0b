"""Finds the core dumps in a guest: by a shell script, because only the guest knows where they are."""

from __future__ import annotations

# https://man7.org/linux/man-pages/man5/core.5.html
SCRIPT = r"""
since=$1 what=$2
read -r pattern </proc/sys/kernel/core_pattern || exit
case $pattern in
    "|"*systemd-coredump* | "@"*systemd/coredump*)
        if [ "$what" = files ]; then
            [ -d /var/lib/systemd/coredump ] || exit 0
            exec find /var/lib/systemd/coredump -type f -newermt "@$since" -printf "%T@ %s %p\n"
        fi
        # Exit code 1 means that there are none, and any failure.
        exec 3>&1
        words=$(coredumpctl list --quiet --no-legend --no-pager --since="@$since" 2>&1 >&3) && exit
        [ $? -eq 1 ] && [ -z "$words" ] && exit
        echo "$words" >&2
        exit 3
        ;;
    "" | "|/bin/false" | "|/usr/bin/false") exit 0 ;;
    [\|@]*)
        echo "the kernel hands core dumps to ${pattern%% *}, which cannot be asked for them" >&2
        exit 3
        ;;
    /*)
        folders=${pattern%%%*}
        folders=${folders%/*}/
        anywhere=
        ;;
    *)
        # Relative to the folder that the process was in, which can be anywhere.
        while case $pattern in ./* | ../*) true ;; *) false ;; esac; do pattern=${pattern#*/}; done
        folders=$(awk '
            $3 ~ /^(bcachefs|btrfs|exfat|ext[234]|f2fs|jfs|nilfs2|overlay|ramfs|tmpfs|vfat|xfs|zfs)$/ {
                gsub(/\\040/, " ", $2); print $2
            }
        ' /proc/mounts) && [ -n "$folders" ] || exit 4
        anywhere="*/"
        ;;
esac
# What the kernel fills in (%p, %e, ...) can be any text; %% is a percent sign.
path=$(printf '%s\n' "$pattern" | sed 's/[][*?\\]/\\&/g; s/%%/\r/g; s/%.\{0,1\}/*/g; s/\r/%/g')
[ -n "$path" ] || exit 4
name=${path##*/}
if [ "$what" = files ]; then set -- -printf "%T@ %s %p\n"; else set -- -ls; fi
found=$(printf '%s\n' "$folders" | while IFS= read -r folder; do
    [ -d "$folder" ] || continue
    # With core_uses_pid a number follows the name.
    find "$folder" -ignore_readdir_race -xdev -type f -newermt "@$since" -path "$anywhere$path*" \
        \( -name "$name" -o -name "$name.[0-9]*" \) \
        -exec sh -c '[ "$(od -An -tx1 -N4 "$1" | tr -d " ")" = 7f454c46 ]' sh {} \; "$@" || exit
done) || exit
[ -z "$found" ] || printf '%s\n' "$found" | sort -u
"""
"""Lists what systemd-coredump has taken, or ELF files where the kernel writes them.

Its arguments are a time of the guest's clock, in seconds, since when, and ``list`` or ``files``: the latter
gives time, size and path of each file.
"""

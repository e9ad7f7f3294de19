#!/bin/sh
# Makes .venv and installs the project into it, editable, with the versions of constraints.txt.
#   sh scripts/setup.sh        what `make run` needs
#   sh scripts/setup.sh dev    what `make test` and `make lint` need as well
# PYTHON=/path/to/python3.12 chooses the Python. Your own pip settings (index, proxy, cache) hold.
set -eu

cd "$(dirname "$0")/.."
LOG=.venv/install.log
MINIMUM="sys.version_info >= (3, 11)"
ticker=

fail() {
    echo "setup: $1" >&2
    shift
    for line in "$@"; do echo "  $line" >&2; done
    exit 1
}

find_python() {
    for candidate in "${PYTHON:-python3}" python3.13 python3.12 python3.11 python3.14; do
        if "$candidate" -c "import sys; sys.exit(not $MINIMUM)" 2>/dev/null; then
            echo "$candidate"
            return
        fi
        # A Python that was asked for by name is not replaced by another.
        [ -z "${PYTHON:-}" ] || break
    done
}

has_compiler() {
    command -v "${CXX:-c++}" >/dev/null 2>&1 || command -v g++ >/dev/null 2>&1 || command -v clang++ >/dev/null 2>&1
}

compiler_hint() {
    if [ "$(uname)" = Darwin ]; then
        echo "Install Apple's with: xcode-select --install"
    else
        echo "Install one with your system's packages, on Debian and Ubuntu: apt install build-essential"
    fi
}

# Tests train with MLX, whose Linux wheel is 20 times faster with a tuned BLAS at hand.
extras() {
    [ "${1:-}" = dev ] || return 0
    if [ "$(uname -sm)" = "Linux x86_64" ] && ! PATH="$PATH:/sbin:/usr/sbin" ldconfig -p 2>/dev/null | grep -q libopenblas; then
        echo "[dev,fuzz,mkl]"
    else
        echo "[dev,fuzz]"
    fi
}

clock() {
    printf '%d:%02d' $(($1 / 60)) $(($1 % 60))
}

# tick LABEL: says now and then how long LABEL has been going on, until it is killed or this script is gone.
tick() {
    started=$(date +%s)
    said=0
    while kill -0 $$ 2>/dev/null; do
        elapsed=$(($(date +%s) - started))
        if [ -t 1 ]; then
            printf '\r  %s  %s ' "$1" "$(clock "$elapsed")"
        elif [ "$elapsed" -ge "$said" ]; then
            echo "  $1  $(clock "$elapsed")"
            said=$((elapsed + 30))
        fi
        sleep 1
    done
}

# step LABEL PIP-ARGUMENTS…: runs pip, its output in the log. pip is the one in the foreground, so that Ctrl-C reaches
# it and the compilers below it.
step() {
    tick "$1" &
    ticker=$!
    shift
    result=0
    .venv/bin/python -m pip --disable-pip-version-check install -c constraints.txt "$@" >>"$LOG" 2>&1 || result=$?
    stop_ticker
    [ "$result" -eq 0 ] || install_failed
}

# prove: looks whether the native libraries work on this processor, says so, and builds llama.cpp otherwise if not.
prove() {
    proved=0
    .venv/bin/python -P -m localllm.native.mend --anew --rebuild broken --constraints constraints.txt || proved=$?
    [ "$proved" -ne 130 ] || interrupted
    [ "$proved" -eq 0 ] || fail "llama.cpp does not work on this machine; what was found stands above." \
        "Run the same command again when that is mended."
}

stop_ticker() {
    [ -n "$ticker" ] || return 0
    # KILL, because a TERM that comes before a new subshell has dropped this script's trap is lost.
    kill -9 "$ticker" 2>/dev/null || true
    wait "$ticker" 2>/dev/null || true
    ticker=
    [ ! -t 1 ] || echo
}

install_failed() {
    echo "setup: pip failed; the end of $LOG:" >&2
    tail -n 25 "$LOG" | sed 's/^/  | /' >&2
    if ! has_compiler; then
        fail "There is no C/C++ compiler, and llama-cpp-python is compiled on your machine." "$(compiler_hint)"
    fi
    fail "The install did not finish; run the same command again when that is mended." "The whole log is in $LOG."
}

interrupted() {
    stop_ticker
    echo "setup: stopped. Run the same command again to go on." >&2
    exit 130
}
trap interrupted INT TERM

# A person's `user = true` is meant for pip outside of environments; inside one, pip refuses it.
export PIP_USER=0

python=$(find_python)
[ -n "$python" ] || fail "Python 3.11 or later is needed; found: $("${PYTHON:-python3}" -V 2>/dev/null || echo none)." \
    "Install one, or say where it is: make run PYTHON=/path/to/python3.12"

# A .venv that was moved, or whose Python has gone, cannot be mended.
if ! .venv/bin/python -c "import sys, pip; sys.exit(not $MINIMUM)" 2>/dev/null; then
    "$python" -c "import ensurepip, venv" 2>/dev/null || fail "$python has no venv module." \
        "On Debian and Ubuntu: apt install python3-venv"
    rm -rf .venv
    "$python" -m venv .venv
fi

: >"$LOG"
begun=$(date +%s)
echo "Installing localllm into .venv (the log is $LOG)."
if ! .venv/bin/python -c "import importlib.metadata as m; m.version('llama-cpp-python')" 2>/dev/null; then
    has_compiler || echo "  No C/C++ compiler found; llama-cpp-python needs one. $(compiler_hint)"
    echo "  llama-cpp-python is compiled for this machine, once: about five minutes on two cores."
    step "compiling llama-cpp-python" llama-cpp-python
fi
extra=$(extras "${1:-}")
step "installing ${extra:-the rest}" -e ".$extra"
prove
touch .venv/.installed
[ "${1:-}" != dev ] || touch .venv/.installed-dev
echo "Installed in $(clock $(($(date +%s) - begun))); .venv takes $(du -sh .venv | cut -f1)."

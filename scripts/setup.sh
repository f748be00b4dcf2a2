# Sourced by the other scripts, in the checkout's root. After `set_up FILE…`, "$python" has what the requirement files
# ask for: in the active virtual environment, else in .venv, which is made here.

started=$(date +%s)
cpu_wheels=https://download.pytorch.org/whl/cpu
recent='import sys; sys.exit(sys.version_info < (3, 10))'

say() {
    printf '[%4d s] %s\n' "$(($(date +%s) - started))" "$*"
}

die() {
    printf '%s: error: %s\n' "$0" "$*" >&2
    exit 2
}

set_up() {
    case "$(uname -s)" in
    Linux | Darwin) ;;
    *) die "$(uname -s) is not supported, Linux and macOS are; on Windows, start it inside WSL" ;;
    esac
    if [ -n "${VIRTUAL_ENV:-}" ]; then
        environment=$VIRTUAL_ENV
        "$environment/bin/python" -c "$recent" 2>/dev/null ||
            die "the active environment $environment has no Python 3.10 or newer; deactivate it, or activate another"
    else
        environment=$PWD/.venv
        make_environment
    fi
    python=$environment/bin/python
    for requirements in "$@"; do
        stamp=$environment/.installed-$(basename "$requirements")
        checksum=$(cksum <"$requirements")
        if [ "$(cat "$stamp" 2>/dev/null)" != "$checksum" ]; then
            install_requirements "$requirements"
            # an environment that cannot be written to, but has everything, is asked again next time
            { echo "$checksum" >"$stamp"; } 2>/dev/null || :
        fi
    done
}

# make_environment: $environment, unless there is one that works
make_environment() {
    if "$environment/bin/python" -m pip --version >/dev/null 2>&1; then
        return
    fi
    for base in python3.13 python3.12 python3.11 python3.10 python3 python; do
        # Asking counts, not the name: pyenv has names that do not run, Debian has a Python without ensurepip.
        if "$base" -c "import ensurepip, venv; $recent" 2>/dev/null; then
            say "making $environment with $("$base" --version)"
            "$base" -m venv --clear "$environment"
            return
        fi
    done
    die "found no Python 3.10 or newer that can make virtual environments; install one (Debian, Ubuntu:" \
        "apt install python3-venv), or activate an environment of your own"
}

# install_requirements FILE
install_requirements() {
    "$python" -m pip --version >/dev/null 2>&1 || "$python" -m ensurepip >/dev/null 2>&1 ||
        die "$environment has no pip; install $1 into it, then start again"
    # --isolated --no-index: with nowhere to get packages from, this succeeds if none is missing
    if "$python" -m pip --isolated install -q --dry-run --no-index -r "$1" >/dev/null 2>&1; then
        return
    fi
    say "installing $1 into $environment; the first time this downloads up to 3 GB (0.5 GB without an NVIDIA GPU)"
    if [ "$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null 2>&1; then
        install_cpu_torch "$1"
    fi
    # a progress bar on a terminal, nothing but warnings elsewhere
    quiet=-q
    if [ -t 1 ]; then quiet=; fi
    "$python" -m pip install --disable-pip-version-check $quiet -r "$1"
    say "installed $1"
}

# install_cpu_torch FILE: the packages of PyTorch that FILE asks for, without CUDA, if their server can be reached
install_cpu_torch() {
    packages=$(sed -n 's/^\(torch[a-z]*[<>=.0-9]*\).*/\1/p' "$1")
    if [ -n "$packages" ]; then
        # --isolated: from that server only. A torch without CUDA and the usual torchvision do not fit together.
        # shellcheck disable=SC2086 # one word per package
        "$python" -m pip --isolated install -q --retries 0 --timeout 5 --index-url "$cpu_wheels" $packages \
            >/dev/null 2>&1 || :
    fi
}

#!/usr/bin/env bash
# Makes .venv ready to run and test this project, or finds in a moment that it is.
#
#   infra/setup.sh                     the CPU environment with the developers' tools
#   MMSEARCH_EXTRAS=gpu,dev infra/setup.sh     the same for a CUDA machine
#   PYTHON=/path/to/python infra/setup.sh      with this interpreter
#
# Idempotent: keyed on the hash of what it installs from; two at once wait for each other. It writes nothing outside
# the checkout. Whatever is wrong is said in one sentence, with exit code 2.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
venv=$root/.venv
log=$root/.venv/setup.log
extras=${MMSEARCH_EXTRAS:-cpu,dev}
torch_index=${MMSEARCH_TORCH_INDEX:-https://download.pytorch.org/whl/cpu} # PyTorch's public CPU index
need_mib=7000                                                             # 4.4 GB installed, the rest while unpacking

fail() {
    printf 'setup: %s\n' "$1" >&2
    exit 2
}
say() { printf 'setup: %s\n' "$1"; }

key=$( { printf '%s\n%s\n' "$root" "$extras"; cat pyproject.toml constraints.txt infra/setup.sh infra/torchvision_guard/mmsearch*; } | sha256sum | cut -d' ' -f1)
ready() { [ -x "$venv/bin/mmsearch" ] && [ "$(cat "$venv/.ready" 2>/dev/null)" = "$key" ]; }

ready && exit 0
command -v flock >/dev/null || fail "the flock command is missing; install util-linux (apt-get install util-linux)"
exec 9>"$root/.setup.lock" || fail "cannot write to $root; check its permissions"
flock -n 9 || { say "another set-up is running here; waiting for it"; flock 9; }
ready && exit 0

# --- the interpreter, the disk -------------------------------------------------------------------------------------
find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3.14 python3}; do
        if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    return 1
}
python=$(find_python) || fail "Python 3.11 to 3.14 is needed and ${PYTHON:-python3} is $(${PYTHON:-python3} -V 2>&1 | head -1 || true); install one (apt-get install python3 python3-venv) or name it with PYTHON="
"$python" -c 'import ensurepip, venv' 2>/dev/null || fail "$python has no venv module; install it (apt-get install python3-venv)"
# Headers matter only where something is compiled at run time (torch.compile, DeepSpeed's own kernels); neither is
# needed by default, so a missing compiler is `mmsearch doctor`'s news and no reason to stop here.

if [ ! -x "$venv/bin/mmsearch" ]; then
    free_mib=$(df -Pm "$root" | awk 'NR==2 {print $4}')
    [ "$free_mib" -ge "$need_mib" ] || fail "$root has $free_mib MiB free and the environment needs $need_mib; free some disk"
fi

if [ -x "$venv/bin/python" ] && ! "$venv/bin/python" -c 'import pip' 2>/dev/null; then
    rm -rf "$venv" # left half made, or by an interpreter that is gone
fi
if [ ! -x "$venv/bin/python" ]; then
    say "making .venv with $("$python" -V)"
    "$python" -m venv "$venv" || fail "$python could not make $venv"
fi
rm -f "$venv/.ready"
: >"$log"
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }
pinned() { sed -n "s/^$1==//p" constraints.txt; }
findable() { pip install --dry-run --no-deps --ignore-installed -q "$@" >>"$log" 2>&1; }

# --- where torch and a torchvision that fits it come from ----------------------------------------------------------
sources=()
case ",$extras," in
*,cpu,*)
    torch="torch==$(pinned torch)+cpu"
    vision="torchvision==$(pinned torchvision)+cpu"
    if ! findable "$torch"; then
        findable --timeout 20 --retries 1 --index-url "$torch_index" "$torch" ||
            fail "pip finds $torch neither in the configured indexes nor at $torch_index; name another with MMSEARCH_TORCH_INDEX="
        sources=(--extra-index-url "$torch_index")
    fi
    if [ ${#sources[@]} -eq 0 ] && ! findable "$vision" && findable --timeout 10 --retries 0 --index-url "$torch_index" "$vision"; then
        sources=(--extra-index-url "$torch_index")
    fi
    ;;
esac

# --- install -------------------------------------------------------------------------------------------------------
say "installing mmsearch-ray[$extras]; two to five minutes, details in .venv/setup.log"
pip install -q -c constraints.txt ${sources[@]+"${sources[@]}"} -e ".[$extras]" >>"$log" 2>&1 || {
    tail -n 5 "$log" >&2
    fail "pip could not install the project's packages; the whole story is in $log"
}

# vLLM's CPU build asks for torchvision, torchaudio and torchcodec of any build. The CUDA ones that pip may have
# brought do not load beside a CPU torch: torchvision is needed and gets the guard, the other two (sound and video,
# which nothing here uses) would only break whoever looks whether they are there.
site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
importable() { "$venv/bin/python" -c "import $1" >>"$log" 2>&1; }
fits() { "$venv/bin/python" -S -c "import sys; sys.path.append('$site'); import $1" >>"$log" 2>&1; } # -S: no guard
if fits torchvision; then
    rm -f "$site"/mmsearch_torchvision_guard.*
else
    cp infra/torchvision_guard/mmsearch_torchvision_guard.* "$site/"
    importable torchvision || fail "torchvision cannot be imported, even with its guard; see $log"
fi
for package in torchaudio torchcodec; do
    if [ -d "$site/$package" ] && ! importable "$package"; then
        pip uninstall -q -y "$package" >>"$log" 2>&1 || fail "pip could not remove $package, whose build does not fit torch; see $log"
    fi
done
importable vllm || fail "vLLM cannot be imported; see $log"

printf '%s\n' "$key" >"$venv/.ready"
say "ready"

# shellcheck shell=bash disable=SC2034,SC2153 # what is set here is used there, and the other way round
# Settings of all scripts, and how the workers of a TPU are reached. Sourced, never run.
#
# A setting is a flag (--run-id) or an environment variable (RUN_ID); the flag wins. A script says
# what it takes and calls `parse`; scripts that it calls get the same settings by the environment.

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
exec 3>&1 # what --dry-run prints is not lost where a command's output is read

fail() { # MESSAGE [EXIT STATUS]
  echo "${0##*/}: error: $1" >&2
  exit "${2:-2}"
}

say() { [[ ${DRY_RUN:-} ]] || echo "${0##*/}: $*" >&2; }

((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) ||
  fail "bash is $BASH_VERSION and must be 4.4 or newer; install one and put it first on PATH"

declare -A DEFAULTS=(
  [api]=tpu [project]='' [zone]='' [name]=qa-flax [accelerator-type]=v5litepod-8
  [runtime-version]=v2-alpha-tpuv5-lite [service-account]='' [bucket]='' [run-id]=''
  [backend]=tpu [secrets]='' [wait-seconds]=3600 [stop-seconds]=300 [retry-seconds]=30
  [tries]=20 [machine-type]=tpu7x-standard-4t [topology]='' [workers]=1
  [image-family]=ubuntu-accel-2404-amd64-tpu-tpu7x [image-project]=ubuntu-os-accelerator-images
)
declare -A MEANINGS=(
  [api]='tpu: Cloud TPU API, v2 to v6e; mig: managed instance group, v5p and newer'
  [project]='Google Cloud project'
  [zone]='zone, as us-west4-a'
  [name]='name of the TPU and of its queued resource, or of the group'
  [accelerator-type]='TPU type and size (api tpu)'
  [runtime-version]='software of the TPU VM (api tpu)'
  [service-account]='account the workers act as; it needs the bucket and the secrets'
  [bucket]='gs://BUCKET[/FOLDER] in the region of the TPU: outputs and compilation cache'
  [run-id]='name of the run; the same name goes on with it'
  [backend]='what the run must be on: tpu, gpu or cpu'
  [secrets]='VARIABLE=SECRET[,...]: set from Secret Manager, on the worker'
  [wait-seconds]='how long to wait for the TPU'
  [stop-seconds]='how long to wait for a run to save and end'
  [retry-seconds]='pause before another try or connection'
  [tries]='how often to start the run at most'
  [machine-type]='machine of each worker (api mig)'
  [topology]='chips, as 2x2x2; only for a slice of several workers (api mig)'
  [workers]='how many machines the slice has (api mig)'
  [image-family]='image of each worker (api mig)'
  [image-project]='project of that image (api mig)'
  [spot]='take capacity that can be preempted'
  [on-demand]='take capacity that cannot be preempted'
  [keep]='leave the TPU when the script ends'
  [follow]='go on until the run ends'
  [dry-run]='print every gcloud command and run none'
)

variable() { # run-id -> RUN_ID, in REPLY
  REPLY=${1^^}
  REPLY=${REPLY//-/_}
}

assign() { # NAME VALUE: for this script and for those that it calls
  variable "$1"
  declare -gx "$REPLY=$2"
}

usage() { # OPTIONS SWITCHES; $ABOUT is the first paragraph
  local name
  printf 'usage: %s [settings]%s\n\n%s\n\n' "${0##*/}" "${TAKES:+ -- $TAKES}" "$ABOUT"
  for name in $1; do
    printf '  --%-18s %s%s\n' "$name X" "${MEANINGS[$name]}" "${DEFAULTS[$name]:+ (${DEFAULTS[$name]})}"
  done
  for name in $2; do printf '  --%-18s %s\n' "$name" "${MEANINGS[$name]}"; done
  printf '\nA setting can also be an environment variable: --run-id X is RUN_ID=X, --keep is KEEP=1.\n'
}

# parse OPTIONS SWITCHES "$@": sets the variables, and ARGUMENTS to what follows `--`.
parse() {
  local options=$1 switches="$2 dry-run" given name
  shift 2
  for name in "${!MEANINGS[@]}"; do
    variable "$name"
    assign "$name" "${!REPLY:-${DEFAULTS[$name]:-}}"
  done
  ARGUMENTS=()
  while (($#)); do
    given=$1
    shift
    case $given in
    -h | --help)
      usage "$options" "$switches"
      exit 0
      ;;
    --)
      [[ ${TAKES:-} ]] || fail "nothing is taken after --, got: $*"
      ARGUMENTS=("$@")
      break
      ;;
    esac
    name=${given%%=*}
    name=${name#--}
    if [[ $given =~ ^--[a-z-]+$ && " $switches " == *" $name "* ]]; then
      assign "$name" 1
    elif [[ $given =~ ^--[a-z-]+(=|$) && " $options " == *" $name "* ]]; then
      if [[ $given == *=* ]]; then
        assign "$name" "${given#*=}"
      else
        (($#)) || fail "--$name needs a value"
        assign "$name" "$1"
        shift
      fi
    else
      fail "unknown argument $(printf %q "$given"); allowed: --${options// / --} --${switches// / --}${TAKES:+ -- $TAKES}"
    fi
  done
  check "$options"
}

check() { # OPTIONS: refuse values that cannot be, before anything costs money
  local name value
  for name in $1; do
    variable "$name"
    value=${!REPLY}
    case $name in
    project | zone | bucket | run-id)
      [[ $value ]] || fail "no $name; give --$name or set $REPLY"
      ;;&
    name)
      [[ $value =~ ^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$ ]] ||
        fail "--name is $(printf %q "$value"); it must be lower-case letters, digits and -"
      ;;
    run-id)
      [[ $value =~ ^[A-Za-z0-9_][A-Za-z0-9._-]*$ ]] ||
        fail "--run-id is $(printf %q "$value"); it must be letters, digits and . _ -"
      ;;
    bucket)
      [[ $value == gs://?* || $value == /* ]] ||
        fail "--bucket is $(printf %q "$value"); it must be gs://BUCKET[/FOLDER], or a folder that all workers share"
      assign bucket "${value%/}"
      ;;
    api) [[ $value == tpu || $value == mig ]] || fail "--api is $(printf %q "$value"); it is tpu or mig" ;;
    backend) [[ $value =~ ^(tpu|gpu|cpu)$ ]] || fail "--backend is $(printf %q "$value"); it is tpu, gpu or cpu" ;;
    secrets)
      [[ $value =~ ^([A-Z_][A-Z0-9_]*=[A-Za-z0-9_-]+(,|$))*$ ]] ||
        fail "--secrets must be VARIABLE=NAME_IN_SECRET_MANAGER[,...]; names, never the secrets themselves"
      ;;
    *-seconds | tries | workers)
      [[ $value =~ ^[0-9]+$ ]] || fail "--$name is $(printf %q "$value"); it must be a whole number"
      ;;
    esac
  done
}

# ---- the cloud -----------------------------------------------------------------------------------

cloud() { # as gcloud; with --dry-run the command is printed instead
  if [[ $DRY_RUN ]]; then
    printf 'gcloud' >&3
    printf ' %q' "$@" >&3
    echo >&3
  else
    gcloud "$@"
  fi
}

# Run gcloud, and take it for done where what it names does not exist.
unless_absent() {
  local said status=0
  said=$(cloud "$@" 2>&1) || status=$?
  if ((status)) && [[ ! ${said,,} =~ not[_\ ]found ]]; then
    echo "$said" >&2
    return "$status"
  fi
}

region() { echo "${ZONE%-*}"; }

# READY, another state in the API's words, NOT_FOUND, or UNKNOWN where the cloud does not answer.
tpu_state() {
  local said status=0 place=("--project=$PROJECT" "--zone=$ZONE")
  if [[ $API == tpu ]]; then
    said=$(cloud compute tpus tpu-vm describe "$NAME" "${place[@]}" '--format=value(state)' 2>&1) || status=$?
  else
    said=$(cloud compute instance-groups managed list-instances "$NAME" "${place[@]}" \
      '--format=value(instanceStatus)' 2>&1) || status=$?
  fi
  if [[ $DRY_RUN ]]; then
    echo READY
  elif ((status)) && [[ ${said,,} =~ not[_\ ]found ]]; then
    echo NOT_FOUND
  elif ((status)); then
    say "$said"
    echo UNKNOWN
  elif [[ $API == tpu ]]; then
    echo "$said"
  elif [[ $(sort -u <<<"$said") == RUNNING && $(wc -l <<<"$said") -eq $WORKERS ]]; then
    echo READY
  else
    echo "${said//$'\n'/,}"
  fi
}

instances() { # of the group, in the order of their names
  if [[ $DRY_RUN ]]; then
    cloud compute instance-groups managed list-instances "$NAME" "--project=$PROJECT" "--zone=$ZONE" '--format=value(name)'
    echo "$NAME-WORKER"
  else
    cloud compute instance-groups managed list-instances "$NAME" "--project=$PROJECT" "--zone=$ZONE" '--format=value(name)' | sort
  fi
}

on_worker() { # NUMBER WORD...: run a command on one worker, or on `all`; every word is quoted
  local worker=$1 command names place=("--project=$PROJECT" "--zone=$ZONE")
  shift
  printf -v command '%q ' "$@"
  if [[ $API == tpu ]]; then
    cloud compute tpus tpu-vm ssh "$NAME" "${place[@]}" "--worker=$worker" "--command=${command% }"
    return
  fi
  names=$(instances)
  [[ $worker == all ]] || names=$(sed -n "$((worker + 1))p" <<<"$names")
  at_once "$names" compute ssh @ "${place[@]}" "--command=${command% }"
}

to_workers() { # FILE NAME: copy a file into the home folder of every worker
  local place=("--project=$PROJECT" "--zone=$ZONE")
  if [[ $API == tpu ]]; then
    cloud compute tpus tpu-vm scp "$1" "$NAME:$2" "${place[@]}" --worker=all
  else
    at_once "$(instances)" compute scp "$1" "@:$2" "${place[@]}"
  fi
}

at_once() { # INSTANCES WORD...: gcloud for each of them, @ standing for its name; fails if one does
  local names=$1 name pid status=0 pids=()
  shift
  for name in $names; do
    cloud "${@/#@/$name}" &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do wait "$pid" || status=$?; done
  return "$status"
}

# shellcheck shell=bash disable=SC2034,SC2153 # this file and the scripts use each other's variables
# Settings of all scripts, and functions that run commands on the workers. Sourced, never run.
#
# A setting is a flag (--run-id) or an environment variable (RUN_ID); the flag takes precedence. Each
# script passes the names of its settings to `parse`, which exports the values: a script that calls
# another script passes the settings on through the environment.

scripts=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
exec 3>&1 # --dry-run prints to 3, as the scripts capture the standard output of some commands

fail() { # MESSAGE [EXIT STATUS]
  echo "${0##*/}: error: $1" >&2
  exit "${2:-2}"
}

info() { [[ ${DRY_RUN:-} ]] || echo "${0##*/}: $*" >&2; }

((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) ||
  fail "bash is $BASH_VERSION, but must be 4.4 or newer; install a newer one and put it first on PATH"

declare -A DEFAULTS=(
  [api]=tpu [project]='' [zone]='' [name]=qa-flax [accelerator-type]=v5litepod-8
  [runtime-version]=v2-alpha-tpuv5-lite [service-account]='' [bucket]='' [run-id]=''
  [backend]=tpu [secrets]='' [wait-seconds]=3600 [stop-seconds]=300 [retry-seconds]=30
  [tries]=20 [machine-type]=tpu7x-standard-4t [topology]='' [workers]=1
  [image-family]=ubuntu-accel-2404-amd64-tpu-tpu7x [image-project]=ubuntu-os-accelerator-images
)
declare -A DESCRIPTIONS=(
  [api]='tpu: Cloud TPU API, for v2 to v6e; mig: managed instance group, for v5p and newer'
  [project]='Google Cloud project'
  [zone]='Google Cloud zone, such as us-west4-a'
  [name]='name of the TPU and its queued resource, or of the instance group'
  [accelerator-type]='TPU type and size (--api tpu)'
  [runtime-version]='TPU software version (--api tpu)'
  [service-account]='service account of the workers; it needs access to the bucket and the secrets'
  [bucket]='gs://BUCKET[/FOLDER] in the region of the TPU, for outputs and compilation cache'
  [run-id]='name of the run; a run with the same name resumes from its latest checkpoint'
  [backend]='the backend that JAX must run on: tpu, gpu or cpu'
  [secrets]='VARIABLE=SECRET[,...]: environment variables to set from Secret Manager on each worker'
  [wait-seconds]='seconds to wait for the TPU'
  [stop-seconds]='seconds to wait for the run to save a checkpoint and stop'
  [retry-seconds]='seconds to wait before the next try'
  [tries]='maximum number of times to start the run'
  [machine-type]='machine type of each worker (--api mig)'
  [topology]='TPU topology, such as 2x2x2; only for a slice of several workers (--api mig)'
  [workers]='number of machines of the slice (--api mig)'
  [image-family]='image family of the workers (--api mig)'
  [image-project]='project of the image family (--api mig)'
  [spot]='use spot capacity, which can be preempted'
  [on-demand]='use on-demand capacity, which is not preempted'
  [keep]='do not delete the TPU when the script ends'
  [follow]='follow the log until the run ends'
  [dry-run]='print the gcloud commands without running them'
)

variable() { # run-id -> RUN_ID, in REPLY
  REPLY=${1^^}
  REPLY=${REPLY//-/_}
}

assign() { # NAME VALUE: set and export the setting's variable
  variable "$1"
  declare -gx "$REPLY=$2"
}

usage() { # OPTIONS SWITCHES: print the help; $ABOUT is its first paragraph
  local name
  printf 'usage: %s [settings]%s\n\n%s\n\n' "${0##*/}" "${TAKES:+ -- $TAKES}" "$ABOUT"
  for name in $1; do
    printf '  --%-18s %s%s\n' "$name X" "${DESCRIPTIONS[$name]}" "${DEFAULTS[$name]:+ (${DEFAULTS[$name]})}"
  done
  for name in $2; do printf '  --%-18s %s\n' "$name" "${DESCRIPTIONS[$name]}"; done
  printf '\nA setting can also be an environment variable: --run-id X is RUN_ID=X, --keep is KEEP=1.\n'
}

# parse OPTIONS SWITCHES "$@": set the variables of all settings, and ARGUMENTS to what follows `--`.
# OPTIONS are the names of settings with a value, SWITCHES those without.
parse() {
  local options=$1 switches="$2 dry-run" argument name
  shift 2
  for name in "${!DESCRIPTIONS[@]}"; do
    variable "$name"
    assign "$name" "${!REPLY:-${DEFAULTS[$name]:-}}"
  done
  ARGUMENTS=()
  while (($#)); do
    argument=$1
    shift
    case $argument in
    -h | --help)
      usage "$options" "$switches"
      exit 0
      ;;
    --)
      [[ ${TAKES:-} ]] || fail "this script takes no arguments after --, got: $*"
      ARGUMENTS=("$@")
      break
      ;;
    esac
    name=${argument%%=*}
    name=${name#--}
    if [[ $argument =~ ^--[a-z-]+$ && " $switches " == *" $name "* ]]; then
      assign "$name" 1
    elif [[ $argument =~ ^--[a-z-]+(=|$) && " $options " == *" $name "* ]]; then
      if [[ $argument == *=* ]]; then
        assign "$name" "${argument#*=}"
      else
        (($#)) || fail "--$name needs a value"
        assign "$name" "$1"
        shift
      fi
    else
      fail "unknown argument $(printf %q "$argument"); allowed: --${options// / --} --${switches// / --}${TAKES:+ -- $TAKES}"
    fi
  done
  check "$options"
}

check() { # OPTIONS: fail on invalid values, before anything costs money
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
    api) [[ $value == tpu || $value == mig ]] || fail "--api is $(printf %q "$value"); it must be tpu or mig" ;;
    backend) [[ $value =~ ^(tpu|gpu|cpu)$ ]] || fail "--backend is $(printf %q "$value"); it must be tpu, gpu or cpu" ;;
    secrets)
      [[ $value =~ ^([A-Z_][A-Z0-9_]*=[A-Za-z0-9_-]+(,|$))*$ ]] ||
        fail "--secrets must be VARIABLE=NAME_IN_SECRET_MANAGER[,...]; give names, never the secrets themselves"
      ;;
    *-seconds | tries | workers)
      [[ $value =~ ^[0-9]+$ ]] || fail "--$name is $(printf %q "$value"); it must be a whole number"
      ;;
    esac
  done
}

# ---- the cloud -----------------------------------------------------------------------------------

cloud() { # WORD...: run gcloud, or with --dry-run print the command
  if [[ $DRY_RUN ]]; then
    printf 'gcloud' >&3
    printf ' %q' "$@" >&3
    echo >&3
  else
    gcloud "$@"
  fi
}

ignore_not_found() { # WORD...: run gcloud; it is no error if the resource does not exist
  local output status=0
  output=$(cloud "$@" 2>&1) || status=$?
  if ((status)) && [[ ! ${output,,} =~ not[_\ ]found ]]; then
    echo "$output" >&2
    return "$status"
  fi
}

region() { echo "${ZONE%-*}"; }

# Print READY, another state of the API, NOT_FOUND, or UNKNOWN if gcloud fails.
tpu_state() {
  local output status=0 location=("--project=$PROJECT" "--zone=$ZONE")
  if [[ $API == tpu ]]; then
    output=$(cloud compute tpus tpu-vm describe "$NAME" "${location[@]}" '--format=value(state)' 2>&1) || status=$?
  else
    output=$(cloud compute instance-groups managed list-instances "$NAME" "${location[@]}" \
      '--format=value(instanceStatus)' 2>&1) || status=$?
  fi
  if [[ $DRY_RUN ]]; then
    echo READY
  elif ((status)) && [[ ${output,,} =~ not[_\ ]found ]]; then
    echo NOT_FOUND
  elif ((status)); then
    info "$output"
    echo UNKNOWN
  elif [[ $API == tpu ]]; then
    echo "$output"
  elif [[ $(sort -u <<<"$output") == RUNNING && $(wc -l <<<"$output") -eq $WORKERS ]]; then
    echo READY
  else
    echo "${output//$'\n'/,}"
  fi
}

instances() { # print the names of the group's instances, sorted
  if [[ $DRY_RUN ]]; then
    cloud compute instance-groups managed list-instances "$NAME" "--project=$PROJECT" "--zone=$ZONE" '--format=value(name)'
    echo "$NAME-WORKER"
  else
    cloud compute instance-groups managed list-instances "$NAME" "--project=$PROJECT" "--zone=$ZONE" '--format=value(name)' | sort
  fi
}

on_worker() { # NUMBER WORD...: run a command on one worker, or on all with `all`; quotes every word
  local worker=$1 command names location=("--project=$PROJECT" "--zone=$ZONE")
  shift
  printf -v command '%q ' "$@"
  if [[ $API == tpu ]]; then
    cloud compute tpus tpu-vm ssh "$NAME" "${location[@]}" "--worker=$worker" "--command=${command% }"
    return
  fi
  names=$(instances)
  [[ $worker == all ]] || names=$(sed -n "$((worker + 1))p" <<<"$names")
  in_parallel "$names" compute ssh @ "${location[@]}" "--command=${command% }"
}

to_workers() { # FILE NAME: copy FILE to the home folder of every worker as NAME
  local location=("--project=$PROJECT" "--zone=$ZONE")
  if [[ $API == tpu ]]; then
    cloud compute tpus tpu-vm scp "$1" "$NAME:$2" "${location[@]}" --worker=all
  else
    in_parallel "$(instances)" compute scp "$1" "@:$2" "${location[@]}"
  fi
}

# in_parallel INSTANCES WORD...: run gcloud for all instances at the same time. A leading @ of a WORD
# is replaced by the instance's name. Fails if one of them fails.
in_parallel() {
  local names=$1 name pid status=0 pids=()
  shift
  for name in $names; do
    cloud "${@/#@/$name}" &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do wait "$pid" || status=$?; done
  return "$status"
}

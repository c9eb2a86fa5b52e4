# bash completion of virt-v2v-wrapper.
# shellcheck shell=bash

_virt_v2v_wrapper() {
  local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} verb=${COMP_WORDS[1]} options='' words=''
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then
    words='plan schema watch resume cleanup jobs cutover pause unpause copy-now checksum help --checks --help --version'
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word")
    return
  fi
  case $verb in
    plan) options='--json';;
    jobs) options='--json --remove --force';;
    cleanup) options='--discard';;
    cutover) options='--now';;
  esac
  case $verb:$before in
    resume:*|cleanup:*|jobs:--remove)
      # One tag a line, in the first column.
      words=$("${COMP_WORDS[0]}" jobs 2>/dev/null | cut -d' ' -f1);;
    schema:*) words='document reply state plan';;
    watch:*|cutover:*|pause:*|unpause:*|copy-now:*|checksum:*)
      case $word in
        -*) ;;
        *)
          compopt -o filenames 2>/dev/null
          mapfile -t COMPREPLY < <(compgen -f -- "$word")
          return;;
      esac
  esac
  mapfile -t COMPREPLY < <(compgen -W "$words $options --help" -- "$word")
}
complete -F _virt_v2v_wrapper virt-v2v-wrapper virt-v2v-wrapper.py

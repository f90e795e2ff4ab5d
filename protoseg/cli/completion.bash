_protoseg() {
  local words
  case $COMP_CWORD in
    1) words="train evaluate predict report teach analyse export convert data render doctor completion" ;;
    2) case ${COMP_WORDS[1]} in
      teach) words="add tune statistics refresh adapt remove merge apply show trial page replay" ;;
      analyse) words="prototypes uncertainty adaptation sweep" ;;
      data) words="info check show stats draw pack export convert render" ;;
    esac ;;
  esac
  COMPREPLY=($(compgen -W "$words" -- "${COMP_WORDS[COMP_CWORD]}"))
}
complete -o default -F _protoseg protoseg

#!/usr/bin/env bash
# Record what a real nvidia-smi answers, for replay in tests on machines without a GPU.
#
#   record_nvidia_smi.sh FOLDER
#
# Writes FOLDER/<case>.{args,out,err,rc}. Serial numbers, UUIDs and host names are replaced,
# so that the recordings may be kept. Needs a machine with an NVIDIA driver.
set -uo pipefail
out=${1:?usage: record_nvidia_smi.sh FOLDER}
mkdir -p "$out"
tool=$(command -v nvidia-smi) || { echo "no nvidia-smi on this machine" >&2; exit 1; }

case_() {                       # case_ NAME ARG…: run once, keep arguments, both streams and the exit code
    local name=$1; shift
    printf '%s\n' "$@" >"$out/$name.args"
    timeout 20 "$tool" "$@" >"$out/$name.out" 2>"$out/$name.err" </dev/null
    echo $? >"$out/$name.rc"
}
timed() {                       # timed NAME SECONDS ARG…: a command that never ends by itself
    local name=$1 s=$2; shift 2
    printf '%s\n' "$@" >"$out/$name.args"
    timeout -s INT "$s" "$tool" "$@" >"$out/$name.out" 2>"$out/$name.err" </dev/null
    echo $? >"$out/$name.rc"
}

case_ table
case_ list -L
case_ list_long --list-gpus
case_ list_i0 -L -i 0
case_ version --version
case_ help -h
case_ q -q
case_ q_i0 -q -i 0
case_ qx -q -x
case_ qx_i0 -q -x -i 0
for d in MEMORY UTILIZATION ECC TEMPERATURE POWER CLOCK COMPUTE PIDS PERFORMANCE SUPPORTED_CLOCKS PAGE_RETIREMENT ACCOUNTING \
         ENCODER_STATS FBC_STATS ROW_REMAPPER RESET_STATUS GSP_FIRMWARE_VERSION VOLTAGE; do
    case_ "q_d_$d" -q -d "$d"
done
case_ q_d_two -q -d MEMORY,UTILIZATION
case_ q_d_lower -q -d memory
case_ q_d_bad -q -d NONSENSE
case_ x_alone -x
case_ d_alone -d MEMORY
case_ i_alone -i 0
case_ i_missing -i 9
case_ i_text -i abc
case_ q_i_missing -q -i 9
case_ query_i_missing --query-gpu=name --format=csv -i 9
case_ list_i_missing -L -i 9
case_ query_i_two --query-gpu=index,name --format=csv -i 0,0
case_ help_query_gpu --help-query-gpu
case_ help_query_compute --help-query-compute-apps
case_ help_query_accounted --help-query-accounted-apps
case_ help_query_retired --help-query-retired-pages
case_ help_query_remapped --help-query-remapped-rows
case_ query_name --query-gpu=name --format=csv
case_ query_noheader --query-gpu=name,memory.total --format=csv,noheader
case_ query_nounits --query-gpu=name,memory.total,power.draw --format=csv,nounits
case_ query_both --query-gpu=name,memory.total --format=csv,noheader,nounits
case_ query_space --query-gpu="name, memory.total" --format=csv
case_ query_two_args --query-gpu name --format csv
case_ query_no_format --query-gpu=name
case_ query_bad_format --query-gpu=name --format=xml
case_ query_bad_format2 --query-gpu=name --format=csv,nonsense
case_ query_noheader_only --query-gpu=name --format=noheader
case_ query_bad_field --query-gpu=nonsense --format=csv
case_ query_bad_second --query-gpu=name,nonsense --format=csv
case_ query_empty --query-gpu= --format=csv
case_ query_empty_item --query-gpu=name,,uuid --format=csv
case_ query_upper --query-gpu=NAME --format=csv
case_ query_twice --query-gpu=name,name --format=csv
case_ format_alone --format=csv
case_ apps --query-compute-apps=timestamp,gpu_name,gpu_bus_id,gpu_uuid,pid,process_name,used_gpu_memory --format=csv
case_ apps_alias --query-compute-apps=pid,name,used_memory --format=csv,noheader
case_ apps_bad --query-compute-apps=nonsense --format=csv
case_ accounted --query-accounted-apps=pid --format=csv
case_ retired --query-retired-pages=gpu_uuid --format=csv
case_ remapped --query-remapped-rows=gpu_uuid --format=csv
case_ unknown_long --nonsense
case_ unknown_short -Z
case_ unknown_word nonsense
case_ loop_bad -l abc
case_ loop_zero -l 0
case_ loop_ms_bad -lms abc
case_ i_no_value -i
case_ topo topo -m
case_ dmon dmon -c 1
case_ pmon pmon -c 1
case_ file_table -f "$out/file_table.written"
case_ file_query --query-gpu=name --format=csv -f "$out/file_query.written"
case_ file_bad -f /nonexistent/folder/x
case_ two_modes -L -q
timed loop_l 2.5 --query-gpu=name --format=csv -l 1
timed loop_lms 0.7 --query-gpu=name --format=csv -lms 200
timed loop_table 1.5 -l 1
timed loop_eq 1.5 --query-gpu=name --format=csv --loop=1
timed loop_ms_eq 0.7 --query-gpu=name --format=csv --loop-ms=200

# Every field by itself: header spelling, unit, value; and all in one line.
fields=$(tr -d '\r' <"$out/help_query_gpu.out" | grep -oE '^"[^"]+"( or "[^"]+")*' | grep -oE '"[^"]+"' | tr -d '"')
printf '%s\n' "$fields" >"$out/fields.txt"
for f in $fields; do
    printf '@@ %s\n' "$f"
    timeout 20 "$tool" --query-gpu="$f" --format=csv 2>&1
    printf '@= %s\n' $?
done >"$out/every_field.txt"

# What must not be kept: identities of the machine.
uuid=$("$tool" --query-gpu=uuid --format=csv,noheader | head -1)
serial=$("$tool" --query-gpu=serial --format=csv,noheader | head -1)
host=$(hostname)
for f in "$out"/*; do
    [ -f "$f" ] || continue
    sed -i -e "s/${uuid:-@none@}/GPU-00000000-1111-2222-3333-444444444444/g" \
           -e "s/\b${serial:-@none@}\b/1650000000000/g" -e "s/\b${host:-@none@}\b/host/g" \
           -e "s#$out#OUT#g" "$f"
done

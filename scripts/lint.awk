# The rules of CONTRIBUTING.md that a line can break: awk -f scripts/lint.awk FILES. Silent when good.
# Who may include whom: kernels, partition <- dist <- model <- launcher; tests include any.
BEGIN {
    may["kernels"] = "kernels"
    may["partition"] = "partition"
    may["dist"] = "kernels partition dist"
    may["model"] = "kernels partition dist model"
    may["launcher"] = "kernels partition dist model launcher"
    # The one home of each foreign header, and of calls that only one file may make: a pattern of paths.
    header_home["mpi.h"] = "^dist/|^launcher/main\\.c$"
    header_home["nccl.h"] = "^dist/comm_nccl"
    header_home["cuda_runtime.h"] = "^kernels/cuda/|^dist/comm_nccl"
    header_home["cuda_bf16.h"] = "^kernels/cuda/"
    header_home["cuda_fp8.h"] = "^kernels/cuda/"
    header_home["cublas_v2.h"] = "^kernels/cuda/"
    header_home["cublasLt.h"] = "^kernels/cuda/"
    header_home["hwloc.h"] = "^dist/cluster\\.c$"
    header_home["dnnl.h"] = "^kernels/cpu/"
    header_home["immintrin.h"] = "^kernels/cpu/"
    header_home["jansson.h"] = "^model/|^launcher/"
    header_home["libconfig.h"] = "^launcher/options\\.c$"
    header_home["microhttpd.h"] = "^launcher/service"
    call_home["getenv"] = "^launcher/options\\.c$"
    call_home["exit"] = "^launcher/main\\.c$|^dist/cluster\\.c$"
    call_home["MPI_Abort"] = "^dist/cluster\\.c$|^launcher/main\\.c$"
}
function complain(rule) {
    printf "%s:%d: %s\n", FILENAME, FNR, rule
    bad = 1
}
FNR == 1 {
    split(FILENAME, part, "/")
    folder = part[1]
    is_test = folder == "tests"
    in_header_comment = 1
}
in_header_comment && !/^\/\// {
    in_header_comment = 0
    if (FNR > 9 && !is_test) complain("header comment of " FNR - 1 " lines; at most 8")
}
/^#[ \t]*include[ \t]*"/ && !is_test {
    split($0, quoted, "\"")
    split(quoted[2], target, "/")
    if (index(" " may[folder] " ", " " target[1] " ") == 0)
        complain(folder "/ must not include \"" quoted[2] "\"")
    if (quoted[2] ~ /^kernels\/(cpu|cuda|reference)\// && FILENAME !~ /^kernels\/|^dist\/comm_nccl\.c$/)
        complain("only kernels/ may include \"" quoted[2] "\": use kernels/kernels.h")
}
/^#[ \t]*include[ \t]*</ && !is_test {
    match($0, /<[^>]*>/)
    header = substr($0, RSTART + 1, RLENGTH - 2)
    sub(/^.*\//, "", header)
    if (header in header_home && FILENAME !~ header_home[header])
        complain("<" header "> does not belong here")
}
/^#.*__(AVX|SSE|FMA)/ { complain("instruction sets are chosen by file suffix, not by #if") }
/^[ \t]*typedef[ \t]+(struct|enum|union)[^(]*$/ && !is_test { complain("structs and enums have no typedef") }
/TODO|FIXME|(^|[^X])XXX([^X]|$)/ { complain("unfinished work: do it or leave it out") }
/[ \t]$/ { complain("trailing space") }
{
    code = $0
    sub(/\/\/.*/, "", code)
    if (!is_test)
        for (name in call_home)
            if (code ~ ("(^|[^A-Za-z0-9_>.])" name "[ ]?\\(") && FILENAME !~ call_home[name])
                complain(name "() does not belong here")
}
END { exit bad }

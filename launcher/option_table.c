#include "launcher/options.h"

#define ROW(path_, type_, field_)                                                                  \
    .path = path_, .type = type_, .offset = offsetof(struct options, field_)

// clang-format off
const struct option option_table[] = {
    {ROW("model.path", OPTION_STRING, model_path), .flag = "--model",
     .help = "GGUF file or Hugging Face folder"},
    {ROW("model.context", OPTION_INT, model_context), .unit = "tokens", .initial = "0", .most = 1e9, .changes_result = true,
     .help = "longest sequence allowed; 0: what the checkpoint was trained for"},
    {ROW("model.indexer", OPTION_STRING, indexer_path), .changes_result = true,
     .help = "safetensors file of a lightning indexer trained for this dense model"},

    {ROW("document.path", OPTION_LIST, documents), .flag = "--document",
     .help = "text file, glob or - for standard input; may be repeated"},
    {ROW("document.tokens", OPTION_LIST, token_files), .flag = "--tokens",
     .help = "file of whitespace-separated token ids in place of text; may be repeated"},
    {ROW("document.list", OPTION_STRING, document_list),
     .help = "file that names one document per line"},
    {ROW("document.window", OPTION_INT, window), .unit = "tokens", .initial = "0", .most = 1e9, .changes_result = true,
     .help = "score long documents in windows of this length; 0: whole"},
    {ROW("document.stride", OPTION_INT, stride), .unit = "tokens", .initial = "0", .most = 1e9, .changes_result = true,
     .help = "from one window to the next; 0: half a window"},

    {ROW("task.kind", OPTION_CHOICE, task), .initial = "score", .flag = "--task",
     .choices = "score|answer", .later = "embed|locate",
     .help = "log-probabilities and perplexity, or generated text with evidence"},
    {ROW("task.questions", OPTION_LIST, questions), .flag = "--question",
     .help = "asked of every document; may be repeated; none: continue the document"},
    {ROW("task.max_tokens", OPTION_INT, max_tokens), .unit = "tokens", .initial = "128", .least = 1, .most = 1e8, .changes_result = true,
     .help = "longest answer"},
    {ROW("task.temperature", OPTION_REAL, temperature), .initial = "0", .most = 100, .changes_result = true,
     .help = "0: greedy; otherwise answers are sampled"},
    {ROW("task.top_p", OPTION_REAL, top_p), .initial = "1", .most = 1, .changes_result = true,
     .help = "sample from the most likely tokens of this total probability"},
    {ROW("task.min_p", OPTION_REAL, min_p), .initial = "0", .most = 1, .changes_result = true,
     .help = "leave out tokens below this share of the largest probability"},
    {ROW("task.template", OPTION_CHOICE, chat_template), .initial = "auto", .choices = "auto|none|chatml|llama3|mistral|deepseek|glm", .changes_result = true,
     .help = "chat template around document and question"},
    {ROW("task.token_logprobs", OPTION_BOOL, token_logprobs), .initial = "false", .changes_result = true,
     .help = "score: also write the log-probability of each token"},
    {ROW("task.evidence", OPTION_INT, evidence), .unit = "passages", .initial = "3", .most = 1000, .changes_result = true,
     .help = "answer: passages of evidence for each question; 0: none"},

    {ROW("output.dir", OPTION_STRING, output), .flag = "--output",
     .help = "folder for results.jsonl, report.txt and report.json"},

    {ROW("run.precision", OPTION_CHOICE, precision), .initial = "auto", .choices = "auto|fp32|bf16", .changes_result = true,
     .help = "of products; auto: bf16 in attention where the processor has it, else fp32"},
    {ROW("kv.precision", OPTION_CHOICE, kv_precision), .initial = "auto", .choices = "auto|fp32|bf16", .later = "fp8|int8", .changes_result = true,
     .help = "of keys and values; auto: fp32 with run.precision = fp32, else bf16"},
    {ROW("run.backend", OPTION_CHOICE, backend), .initial = "auto", .choices = "auto|reference|cpu", .later = "cuda",
     .help = "what computes; reference is slow and simple"},
    {ROW("run.isa", OPTION_CHOICE, isa), .initial = "auto", .choices = "auto|plain|avx2|avx512|avx512_bf16",
     .help = "best instruction set that the cpu backend may use"},
    {ROW("run.transport", OPTION_CHOICE, transport), .initial = "auto", .choices = "auto|self|mpi", .later = "mpi_staged|nccl",
     .help = "what carries data between ranks"},
    {ROW("run.threads", OPTION_INT, threads), .initial = "0", .most = 4096,
     .help = "of each rank; 0: its share of the cores"},
    {ROW("run.seed", OPTION_INT, seed), .initial = "0", .most = 9007199254740992., .changes_result = true,
     .help = "of sampling"},
    {ROW("run.deadline", OPTION_REAL, deadline), .unit = "s", .initial = "600", .least = 1, .most = 1e6,
     .help = "longest wait for another rank before the job ends with 69"},
    {ROW("attention.kind", OPTION_CHOICE, attention_kind), .initial = "auto", .choices = "auto|dense|dsa", .changes_result = true,
     .help = "dense: every token; dsa: the best by the indexer; auto: dsa where there is an indexer"},
    {ROW("dsa.top_k", OPTION_INT, top_k), .unit = "tokens", .initial = "0", .most = 1e6, .changes_result = true,
     .help = "selected for each query; 0: what the checkpoint says, or 512"},
    {ROW("dsa.precision", OPTION_CHOICE, index_precision), .initial = "auto", .choices = "auto|fp8|bf16|fp32", .changes_result = true,
     .help = "of index queries and keys; auto: fp32 with run.precision = fp32, else fp8"},
    {ROW("dsa.exchange", OPTION_CHOICE, exchange), .initial = "auto", .choices = "auto|keys|scores",
     .help = "what travels for the selection; auto: fewer bytes"},
    {ROW("dsa.study", OPTION_BOOL, study), .initial = "false",
     .help = "report recall and overlap of the selection by layer; costs dense attention as well"},
    {ROW("partition.layout", OPTION_CHOICE, layout), .initial = "auto", .choices = "auto|zigzag|contiguous",
     .help = "which tokens a rank owns; auto: zigzag, which balances causal work"},
    {ROW("prefill.chunk", OPTION_INT, chunk), .unit = "tokens", .initial = "0", .most = 1e9,
     .help = "read at once; 0: the whole document; less needs less memory"},
};
// clang-format on
const int n_option = sizeof option_table / sizeof *option_table;
_Static_assert(sizeof option_table / sizeof *option_table <=
                   sizeof((struct options *)0)->source / sizeof((struct options *)0)->source[0],
               "options.source has an entry for each row");

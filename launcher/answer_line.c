#include "launcher/answer_line.h"

#include <stdlib.h>
#include <string.h>

#include "launcher/results.h"

enum status answer_line(const struct job *job, const struct answered *a, json_t **out) {
    char *text;
    size_t bytes;
    enum status status =
        tokenizer_decode(job->tokenizer, a->token, a->n_token, false, &text, &bytes);
    if (status != OK) return status_context(status, "the answer on %s is no text", a->document);
    json_t *object = json_object();
    json_object_set_new(object, "document", json_text(a->document, strlen(a->document)));
    json_object_set_new(object, "task", json_string("answer"));
    json_object_set_new(object, "question",
                        a->question ? json_text(a->question, strlen(a->question)) : json_null());
    json_object_set_new(object, "answer", json_text(text, bytes));
    json_object_set_new(object, "n_prompt", json_integer(a->n_prompt));
    json_object_set_new(object, "n_generated", json_integer(a->n_token));
    json_object_set_new(object, "evidence", evidence_list(job, a->evidence, a->text, a->n_passage));
    int64_t beyond = job_beyond_training(job, a->n_prompt + a->n_token);
    if (beyond > 0) json_object_set_new(object, "beyond_training", json_integer(beyond));
    if (model_spec_reads_length(&job->checkpoint.spec))
        json_object_set_new(object, "rope_length", json_integer(a->length));
    json_object_set_new(object, "seconds", json_number(a->seconds));
    free(text);
    *out = object;
    return OK;
}

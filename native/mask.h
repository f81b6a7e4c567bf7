// Masks: hidden scores become -inf.
//
// Inputs: the visible ranges of a row, its rules that are looked up key by key, and its scores of a
// block, in panels [begin, end) counted from the block's first key. Output: the scores, in place.
// Tail rule: keys behind the last are outside every range and are hidden.
#pragma once

#include <cstdint>

#include "elements.h"
#include "simd.h"
#include "softmax_state.h"
#include "visible_keys.h"

namespace keywise::KEYWISE_TARGET {

static inline void hide_scores(int64_t begin, int64_t end, float* scores) {
  for (int64_t j = begin; j < end; ++j) scores[j] = -kInfinity;
}

// Hides what is outside both ranges of a row; the kept range begins first.
static inline void hide_invisible(const VisibleKeys& visible, int64_t first_key, int64_t begin,
                                  int64_t end, float* scores) {
  int64_t done = begin;  // scores before it are final
  const KeyRange ranges[] = {visible.kept, visible.near};
  for (const KeyRange& range : ranges) {
    const int64_t range_begin = clamp(range.begin - first_key, begin, end);
    const int64_t range_end = clamp(range.end - first_key, begin, end);
    if (range_begin >= range_end) continue;
    hide_scores(done, range_begin, scores);
    done = max(done, range_end);
  }
  hide_scores(done, end, scores);
}

// Hides keys of other documents, and keys that the boolean array hides. Keys from `end` on do not
// exist.
static inline void hide_by_key(const Problem& problem, int64_t item, int64_t head, int64_t token,
                               int64_t first_key, int64_t begin, int64_t end, float* scores) {
  const MaskRules& rules = problem.visibility;
  if (rules.documents) {
    const int64_t position = query_position(problem, item, token);
    if (position >= 0 && position < rules.positions) {
      const int32_t* documents = rules.documents + item * rules.positions;
      const int32_t* key_documents = documents + rules.first_key + first_key;
      for (int64_t j = begin; j < end; ++j)
        scores[j] = key_documents[j] == documents[position] ? scores[j] : -kInfinity;
    }
  }
  if (rules.allowed) {
    const int64_t* stride = rules.allowed_stride;
    const uint8_t* row = rules.allowed + item * stride[0] + head * stride[1] + token * stride[2] +
                         first_key * stride[3];
    if (stride[3] == 1) {
      for (int64_t j = begin; j < end; ++j) scores[j] = row[j] ? scores[j] : -kInfinity;
    } else {
      for (int64_t j = begin; j < end; ++j) scores[j] = row[j * stride[3]] ? scores[j] : -kInfinity;
    }
  }
}

// Returns whether neither the mask nor a bias of -inf hides a key from a row that sees `visible`.
// For rare cases: weights of 0 do not tell a hidden key from one whose weight underflowed.
static inline bool sees_key(const Problem& problem, int64_t item, int64_t head, int64_t token,
                            const VisibleKeys& visible, int64_t key) {
  const MaskRules& rules = problem.visibility;
  if (!contains(visible, key, key + 1)) return false;
  if (rules.documents) {
    const int32_t* documents = rules.documents + item * rules.positions;
    const int64_t position = query_position(problem, item, token);
    if (documents[rules.first_key + key] != documents[position]) return false;
  }
  const auto offset = [&](const int64_t* stride) {
    return item * stride[0] + head * stride[1] + token * stride[2] + key * stride[3];
  };
  if (rules.allowed && !rules.allowed[offset(rules.allowed_stride)]) return false;
  const Bias& bias = problem.bias;
  return !bias.data || read_element(bias.data, bias.dtype, offset(bias.stride)) != -kInfinity;
}

}  // namespace keywise::KEYWISE_TARGET

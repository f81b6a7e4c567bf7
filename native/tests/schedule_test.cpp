// Tests of make_schedule alone: schedules of many sizes cover every row and key exactly once,
// whatever the threads.

#include <cstdint>
#include <cstdio>
#include <new>
#include <vector>

#include "../checked.h"
#include "../integers.h"
#include "../schedule.h"
#include "../tuning.h"

namespace keywise {
namespace {

int failures = 0;

#define CHECK(condition)                                                   \
  do {                                                                     \
    if (!(condition)) {                                                    \
      std::printf("%s:%d: %s is false\n", __FILE__, __LINE__, #condition); \
      ++failures;                                                          \
    }                                                                      \
  } while (false)

Target make_target() {
  Target target{};
  target.name = "test";
  target.tile_rows = 12;
  return target;
}

// A problem of sizes alone, with memory only for what a schedule looks at.
struct SizedProblem {
  Problem problem;
  std::vector<int64_t> lengths;
  std::vector<int64_t> starts;
  float key_mass = 0.0f;

  SizedProblem(int64_t batch, int64_t key_heads, int64_t group, int64_t queries, int64_t keys)
      : lengths(size_t(batch), keys), starts(size_t(batch), 0) {
    problem.batch = batch;
    problem.key_heads = key_heads;
    problem.query_heads = key_heads * group;
    problem.queries = queries;
    problem.keys = keys;
    problem.head_dim = 64;
    problem.value_dim = 64;
    problem.visibility.lengths = lengths.data();
    problem.visibility.starts = starts.data();
  }
  SizedProblem(const SizedProblem&) = delete;

  void want_statistics(int64_t first_query, int64_t last_query) {
    problem.wants_statistics = true;
    problem.statistics.first_query = first_query;
    problem.statistics.last_query = last_query;
    problem.statistics.key_mass = &key_mass;
  }

  int64_t rows() const { return problem.queries * problem.group(); }
  int64_t heads() const { return problem.batch * problem.key_heads; }
};

// Splits follow each other without gaps, and only the last may end inside a block of keys.
void check_splits(const std::vector<Split>& splits, int64_t max_keys) {
  CHECK(!splits.empty());
  for (size_t i = 0; i < splits.size(); ++i) {
    CHECK(splits[i].first_key % kBlockKeys == 0);
    CHECK(splits[i].key_count <= max_keys);
    CHECK(splits[i].key_count > 0 || splits.size() == 1);
    if (i > 0) CHECK(splits[i].first_key == splits[i - 1].first_key + splits[i - 1].key_count);
  }
}

int64_t end_of(const std::vector<Split>& splits) {
  return splits.back().first_key + splits.back().key_count;
}

void check_by_rows(const SizedProblem& sized, const Schedule& schedule) {
  int64_t row = 0;
  for (const QueryBlock& block : schedule.query_blocks) {
    CHECK(block.first_row == row);
    CHECK(block.last_row > block.first_row);
    CHECK(block.last_row - block.first_row <= kMaxBlockRows);
    CHECK(end_of(block.splits) <= sized.problem.keys);
    check_splits(block.splits, kScoreBufferKeys);
    const int64_t group = sized.problem.group();
    const Statistics& statistics = sized.problem.statistics;
    const bool inside = block.first_row >= statistics.first_query * group &&
                        block.last_row <= statistics.last_query * group;
    CHECK(block.has_statistics == (sized.problem.wants_statistics && inside));
    row = block.last_row;
  }
  CHECK(row == sized.rows());
  CHECK(schedule.tasks_per_head >= 1);
  CHECK(schedule.tasks_per_head <= int64_t(schedule.query_blocks.size()));
  CHECK(schedule.row_heads_at_once >= 1);
  CHECK(schedule.row_heads_at_once <= sized.heads());
  if (schedule.shares_packed_keys) {
    check_splits(schedule.splits, kScoreBufferKeys);
    CHECK(end_of(schedule.splits) == sized.problem.keys);
    CHECK(schedule.head_bytes >= sized.problem.keys * 2 * 64 * int64_t(sizeof(float)));
  }
}

void check_by_keys(const SizedProblem& sized, const Schedule& schedule) {
  check_splits(schedule.splits, kSplitKeys);
  CHECK(end_of(schedule.splits) == sized.problem.keys);
  CHECK(schedule.tasks_per_head == int64_t(schedule.splits.size()));
  CHECK(schedule.head_bytes >= sized.rows() * sized.problem.value_dim * int64_t(sizeof(float)));
}

void check_threads(const SizedProblem& sized, const Schedule& schedule) {
  int64_t before = 0;
  for (const int threads : {1, 2, 3, 8, 64, 1024}) {
    const int64_t heads = count_heads_at_once(schedule, sized.problem, threads);
    CHECK(heads >= 1);
    CHECK(heads <= sized.heads());
    CHECK(heads >= before);
    // By rows the number of heads decides how key mass is summed, so it must not depend on threads.
    if (!schedule.by_keys && before > 0) CHECK(heads == before);
    before = heads;
  }
  for (const int64_t count : {1, 2, 7, 8, 9, 1000}) {
    const int64_t handout = count_tasks_per_handout(schedule.work, count);
    CHECK(handout >= 1);
    CHECK(handout <= count);
  }
}

void check(const SizedProblem& sized) {
  const int before = failures;
  const Schedule schedule = make_schedule(sized.problem, make_target());
  if (schedule.by_keys) {
    check_by_keys(sized, schedule);
  } else {
    check_by_rows(sized, schedule);
  }
  check_threads(sized, schedule);
  if (failures > before) {
    const Problem& problem = sized.problem;
    std::printf(
        "  with batch %lld, key heads %lld, group %lld, queries %lld, keys %lld, statistics %d\n",
        (long long)problem.batch, (long long)problem.key_heads, (long long)problem.group(),
        (long long)problem.queries, (long long)problem.keys, int(problem.wants_statistics));
  }
}

void test_every_row_and_key_is_covered_once() {
  for (const int64_t batch : {1, 3}) {
    for (const int64_t key_heads : {1, 8}) {
      for (const int64_t group : {1, 4}) {
        for (const int64_t queries : {1, 2, 13, 60, 240, 241, 1000}) {
          for (const int64_t keys : {0, 1, 255, 256, 257, 1024, 1025, 4096, 9001}) {
            SizedProblem plain(batch, key_heads, group, queries, keys);
            check(plain);
            SizedProblem causal(batch, key_heads, group, queries, keys);
            causal.problem.visibility.causal = true;
            check(causal);
            SizedProblem window(batch, key_heads, group, queries, keys);
            window.problem.visibility.causal = true;
            window.problem.visibility.left = 300;
            window.want_statistics(0, queries);
            check(window);
            SizedProblem some_queries(batch, key_heads, group, queries, keys);
            some_queries.want_statistics(queries / 3, queries - queries / 4);
            check(some_queries);
          }
        }
      }
    }
  }
}

void test_few_rows_are_split_by_keys_and_many_are_not() {
  const Target target = make_target();
  CHECK(make_schedule(SizedProblem(1, 8, 1, 1, kSplitKeys + 1).problem, target).by_keys);
  CHECK(!make_schedule(SizedProblem(1, 8, 1, 1, kSplitKeys).problem, target).by_keys);
  CHECK(!make_schedule(SizedProblem(1, kMaxFewHeads, 1, 1, kMinManyKeys - 1).problem, target)
             .by_keys);
  CHECK(make_schedule(SizedProblem(1, kMaxFewHeads, 1, 1, kMinManyKeys).problem, target).by_keys);
  CHECK(make_schedule(SizedProblem(1, 64, 1, kMaxSplitRows, kMinManyKeys).problem, target).by_keys);
  CHECK(!make_schedule(SizedProblem(1, 64, 1, kMaxSplitRows + 1, kMinManyKeys).problem, target)
             .by_keys);
}

void test_weights_that_would_fill_memory_are_not_kept_by_keys() {
  SizedProblem sized(1, 64, 1, kMaxSplitRows, 1 << 20);
  CHECK(make_schedule(sized.problem, make_target()).by_keys);
  sized.want_statistics(0, kMaxSplitRows);
  CHECK(!make_schedule(sized.problem, make_target()).by_keys);
}

void test_a_window_leaves_out_keys_that_no_row_sees() {
  SizedProblem sized(1, 1, 1, 4096, 4096);
  sized.problem.visibility.causal = true;
  sized.problem.visibility.left = 500;
  const Schedule schedule = make_schedule(sized.problem, make_target());
  CHECK(schedule.query_blocks.front().splits.front().first_key == 0);
  CHECK(end_of(schedule.query_blocks.front().splits) <= kBlockKeys);
  CHECK(schedule.query_blocks.back().splits.front().first_key >= 3000);
}

void test_no_visible_key_makes_one_empty_split() {
  SizedProblem sized(2, 1, 1, 300, 700);
  sized.lengths.assign(2, 0);
  for (const QueryBlock& block : make_schedule(sized.problem, make_target()).query_blocks) {
    CHECK(block.splits.size() == 1);
    CHECK(block.splits[0].key_count == 0);
  }
}

void test_key_mass_is_summed_by_few_tasks() {
  SizedProblem sized(1, 16, 1, 4096, 4096);
  sized.want_statistics(0, 4096);
  const Schedule schedule = make_schedule(sized.problem, make_target());
  CHECK(schedule.tasks_per_head <= kMinTasks);
  CHECK((schedule.row_heads_at_once & (schedule.row_heads_at_once - 1)) == 0);
}

void test_work_beyond_64_bits_is_the_largest_integer() {
  const SizedProblem sized(1, int64_t(1) << 30, 1, 1, (int64_t(1) << 31) - 1);
  CHECK(make_schedule(sized.problem, make_target()).work == INT64_MAX);
}

template <typename Compute>
bool overflows(const Compute& compute) {
  try {
    compute();
  } catch (const std::bad_alloc&) {
    return true;
  }
  return false;
}

void test_checked_arithmetic_throws_where_a_result_does_not_fit() {
  constexpr int64_t kLarge = int64_t(1) << 40;
  CHECK(checked_multiply(kLarge, kLarge >> 20, 4) == int64_t(1) << 62);
  CHECK(checked_add(INT64_MAX - 1, 1) == INT64_MAX);
  CHECK(checked_round_up(33, 16) == 48);
  CHECK(overflows([] { checked_multiply(kLarge, kLarge); }));
  CHECK(overflows([] { checked_multiply(3, kLarge, kLarge); }));
  CHECK(overflows([] { checked_add(INT64_MAX, 1); }));
  CHECK(overflows([] { checked_round_up(INT64_MAX - 3, 16); }));
  CHECK(saturating_multiply(kLarge, kLarge) == INT64_MAX);
}

}  // namespace
}  // namespace keywise

int main() {
  keywise::test_every_row_and_key_is_covered_once();
  keywise::test_few_rows_are_split_by_keys_and_many_are_not();
  keywise::test_weights_that_would_fill_memory_are_not_kept_by_keys();
  keywise::test_a_window_leaves_out_keys_that_no_row_sees();
  keywise::test_no_visible_key_makes_one_empty_split();
  keywise::test_key_mass_is_summed_by_few_tasks();
  keywise::test_work_beyond_64_bits_is_the_largest_integer();
  keywise::test_checked_arithmetic_throws_where_a_result_does_not_fit();
  if (keywise::failures == 0) std::printf("all tests passed\n");
  return keywise::failures == 0 ? 0 : 1;
}

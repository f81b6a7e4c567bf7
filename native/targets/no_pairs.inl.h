// The vocabulary of pairs of bfloat16 where no instruction multiplies them: never called.

static constexpr bool kHasBf16Dot = false;
static inline Vec dot_pairs(Vec, Vec, Vec accumulator) { return accumulator; }
static inline void int8_pairs(const int8_t*, int64_t, Vec* pairs) { pairs[0] = pairs[1] = zero(); }
static constexpr int64_t kInt8Fold = 16;
static inline void int8_pairs_of_keys(const char* const*, int64_t, Vec* pairs) { pairs[0] = pairs[1] = zero(); }
static inline Vec broadcast_fold(const float*) { return zero(); }
template <int C>
static inline void int8_pairs_of_rows(const char*, const char*, Vec* pairs) { pairs[0] = zero(); }
static inline Vec to_pairs(Vec left, Vec) { return left; }
static inline Vec interleave(const uint16_t*, const uint16_t*) { return zero(); }

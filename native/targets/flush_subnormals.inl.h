// Subnormal results are 0 while this stands: SSE's switch, which AVX2 and AVX-512 obey too.

class FlushSubnormals {
 public:
  FlushSubnormals() { _mm_setcsr(before_ | _MM_FLUSH_ZERO_ON); }
  ~FlushSubnormals() { _mm_setcsr(before_); }

 private:
  const unsigned before_ = _mm_getcsr();
};

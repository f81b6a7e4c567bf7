// Arrays of Python callers: how kernels read them, and how results return to their library.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "../inputs.h"
#include "dlpack.h"

namespace keywise::python {

namespace nb = nanobind;

// Functions of keywise.attention.arrays for arrays that are neither plain torch tensors nor plain
// NumPy arrays.
struct ArrayFunctions {
  nb::object host_array;         // the class HostArray
  nb::object as_readable_array;  // (name, value) -> HostArray that kernels can read, or raises
  nb::object allocate_result;    // (shape, dtype, like) -> NumPy array
  nb::object to_library;         // (NumPy array, like) -> array of the library of `like`
};
void set_array_functions(ArrayFunctions functions);

bool is_torch_imported();

// An array of a caller and what holds it.
struct HeldArray {
  InputArray array;
  nb::object owner;        // keeps the memory alive
  bool is_tensor = false;  // a plain torch tensor

  nb::object like() const;    // what results take their library from
  const char* dtype() const;  // name of the element type
};

// Reads the arrays of one call.
class ArrayReader {
 public:
  ArrayReader();

  // Reads an array where it is, or a contiguous copy where kernels cannot. Raises what
  // `as_readable_array` raises.
  HeldArray read(const std::string& name, nb::handle value) const;

 private:
  bool reads_tensors_;  // without as_readable_array
};

// Query, keys and values of one call, checked against each other.
class Inputs {
 public:
  Inputs(HeldArray query, std::vector<HeldArray> held, std::vector<Chunk> chunks, Sizes sizes,
         Dtype stored_dtype);

  const InputArray& query() const { return query_.array; }
  const std::vector<Chunk>& chunks() const { return chunks_; }
  const Sizes& sizes() const { return sizes_; }
  Dtype stored_dtype() const { return stored_dtype_; }

  nb::object query_object() const { return query_.owner; }
  nb::tuple key_objects() const { return collect(0); }
  nb::tuple value_objects() const { return collect(1); }
  const HeldArray& held_query() const { return query_; }
  const char* dtype() const { return query_.dtype(); }

 private:
  nb::tuple collect(size_t side) const;

  HeldArray query_;
  std::vector<HeldArray> held_;  // key and value of every chunk
  std::vector<Chunk> chunks_;
  Sizes sizes_;
  Dtype stored_dtype_;
};

// Results of one call, made in the library of an argument.
class Results {
 public:
  // `as_numpy`: NumPy arrays whatever the argument is.
  Results(const HeldArray& argument, bool as_numpy) : argument_(argument), as_numpy_(as_numpy) {}

  float* add_float32(const char* name, std::initializer_list<int64_t> shape);
  int32_t* add_int32(const char* name, std::initializer_list<int64_t> shape);
  void* add_output(const char* name,
                   std::initializer_list<int64_t> shape);  // of the argument's dtype

  // Returns the results by name.
  nb::dict take();

 private:
  struct Result {
    const char* name;
    std::optional<dlpack::OwnedTensor> tensor;
    nb::object array;
  };
  void* add(const char* name, dlpack::Type type, const char* dtype,
            std::initializer_list<int64_t> shape);

  const HeldArray& argument_;
  const bool as_numpy_;
  std::vector<Result> results_;
};

}  // namespace keywise::python

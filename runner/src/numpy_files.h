// NumPy's files: one array (.npy), or several in a zip (.npz), which zlib unpacks.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "files.h"

namespace edge {

struct Array {
  std::string dtype;  // as NumPy writes it: "|u1", "<f4", "<i8"
  std::vector<std::size_t> shape;
  Bytes data;  // in C order

  std::size_t count() const;          // of elements
  std::vector<float> floats() const;  // of a "<f4"; throws Error for others
  std::string describe() const;       // for messages: |u1 (16, 64, 64)
};

// Each throws Error, naming the file, where the bytes are not what NumPy writes, or hold more than 2^28 elements.
Array read_npy(const Bytes& bytes, const std::string& file);
std::map<std::string, Array> read_npz(const Bytes& bytes, const std::string& file);

}  // namespace edge

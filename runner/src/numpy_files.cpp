#include "numpy_files.h"

#include <zlib.h>

#include <cstring>

#include "error.h"

namespace edge {
namespace {

constexpr std::size_t kMaxElements = std::size_t{1} << 28;
constexpr std::size_t kMaxEntries = 64;

std::size_t read_little_endian(const Bytes& bytes, std::size_t at, int count) {
  std::size_t value = 0;
  for (int i = count - 1; i >= 0; --i) value = value << 8 | bytes[at + static_cast<std::size_t>(i)];
  return value;
}

// The text between `first` and `last` after `'name': ` in the header, which is a Python dictionary as NumPy always writes it.
std::string header_value(const std::string& header, const std::string& name, char first, char last, const std::string& file) {
  const std::string key = "'" + name + "': ";
  const std::size_t at = header.find(key);
  const std::size_t start = at == std::string::npos ? header.size() : at + key.size();
  const std::size_t end = header.find(last, start + 1);
  if (start >= header.size() || header[start] != first || end == std::string::npos) {
    throw Error(file + " has no readable NumPy header");
  }
  return header.substr(start + 1, end - start - 1);
}

std::size_t element_size(const std::string& dtype, const std::string& file) {
  static const std::map<std::string, std::size_t> sizes = {{"|u1", 1}, {"<f4", 4}, {"<i8", 8}};
  const auto size = sizes.find(dtype);
  if (size == sizes.end()) throw Error(file + " holds " + dtype + "; uint8, float32 and int64 can be read");
  return size->second;
}

std::vector<std::size_t> parse_shape(const std::string& text, const std::string& file) {
  std::vector<std::size_t> shape;
  std::size_t at = 0, elements = 1;
  while (at < text.size()) {
    std::size_t extent = 0, digits = 0;
    for (; at < text.size() && text[at] >= '0' && text[at] <= '9' && digits < 10; ++at, ++digits) {
      extent = extent * 10 + static_cast<std::size_t>(text[at] - '0');
    }
    if (digits == 0 || extent > kMaxElements || (extent != 0 && elements > kMaxElements / extent)) {
      throw Error(file + " has no readable shape, or too large a one");
    }
    elements *= extent;
    shape.push_back(extent);
    at += text.compare(at, 2, ", ") == 0 ? 2 : at < text.size() && text[at] == ',' ? 1 : 0;
  }
  return shape;
}

// A DEFLATE stream without zlib's header, as it lies in a zip, that must give `size` bytes.
Bytes unpack(const std::uint8_t* data, std::size_t length, std::size_t size, const std::string& file) {
  Bytes bytes(size + 1);  // never empty, and what is too long is seen
  z_stream stream{};
  stream.next_in = const_cast<Bytef*>(data);  // zlib only reads it
  stream.avail_in = static_cast<uInt>(length);
  stream.next_out = bytes.data();
  stream.avail_out = static_cast<uInt>(bytes.size());
  if (inflateInit2(&stream, -MAX_WBITS) != Z_OK) throw std::bad_alloc();
  const int result = inflate(&stream, Z_FINISH);
  inflateEnd(&stream);
  if (result != Z_STREAM_END || stream.total_out != size) throw Error(file + " is damaged: it cannot be unpacked");
  bytes.pop_back();
  return bytes;
}

}  // namespace

std::size_t Array::count() const {
  std::size_t product = 1;
  for (const std::size_t extent : shape) product *= extent;
  return product;
}

std::vector<float> Array::floats() const {
  if (dtype != "<f4") throw Error("expected float32, not " + describe());
  std::vector<float> values(count());
  if (!values.empty()) std::memcpy(values.data(), data.data(), data.size());
  return values;
}

std::string Array::describe() const {
  std::string text = dtype + " (";
  for (std::size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + ")";
}

Array read_npy(const Bytes& bytes, const std::string& file) {
  if (bytes.size() < 10 || std::memcmp(bytes.data(), "\x93NUMPY", 6) != 0 || (bytes[6] != 1 && bytes[6] != 2)) {
    throw Error(file + " is no .npy file");
  }
  const std::size_t start = bytes[6] == 1 ? 10 : 12;
  if (bytes.size() < start) throw Error(file + " is cut short");
  const std::size_t length = read_little_endian(bytes, 8, bytes[6] == 1 ? 2 : 4);
  if (length > bytes.size() - start) throw Error(file + " is cut short");
  const std::string header(bytes.begin() + static_cast<std::ptrdiff_t>(start), bytes.begin() + static_cast<std::ptrdiff_t>(start + length));
  if (header.find("'fortran_order': False") == std::string::npos) throw Error(file + " is not in C order");
  Array array;
  array.dtype = header_value(header, "descr", '\'', '\'', file);
  array.shape = parse_shape(header_value(header, "shape", '(', ')', file), file);
  const std::size_t expected = array.count() * element_size(array.dtype, file);
  if (bytes.size() - start - length != expected) throw Error(file + " is longer or shorter than its header says");
  array.data.assign(bytes.begin() + static_cast<std::ptrdiff_t>(start + length), bytes.end());
  return array;
}

std::map<std::string, Array> read_npz(const Bytes& bytes, const std::string& file) {
  constexpr std::size_t tail = 22;  // the record at the end, without a comment
  const auto fail = [&]() -> void { throw Error(file + " is no readable .npz file"); };
  if (bytes.size() < tail) fail();
  const std::size_t end = bytes.size() - tail;
  if (read_little_endian(bytes, end, 4) != 0x06054b50) fail();
  const std::size_t entries = read_little_endian(bytes, end + 10, 2);
  std::size_t at = read_little_endian(bytes, end + 16, 4);
  if (entries > kMaxEntries) fail();
  std::map<std::string, Array> arrays;
  for (std::size_t i = 0; i < entries; ++i) {
    if (at > end || end - at < 46 || read_little_endian(bytes, at, 4) != 0x02014b50) fail();
    const auto field = [&](std::size_t offset, int count) { return read_little_endian(bytes, at + offset, count); };
    const std::size_t flags = field(8, 2), method = field(10, 2), checksum = field(16, 4), packed = field(20, 4), size = field(24, 4);
    const std::size_t name_length = field(28, 2), rest = field(30, 2) + field(32, 2), local = field(42, 4);
    if (end - at - 46 < name_length || flags & 1 || size > kMaxElements * 8) fail();
    const std::string name(bytes.begin() + static_cast<std::ptrdiff_t>(at + 46),
                           bytes.begin() + static_cast<std::ptrdiff_t>(at + 46 + name_length));
    at += 46 + name_length + rest;
    if (local > end || end - local < 30 || read_little_endian(bytes, local, 4) != 0x04034b50) fail();
    const std::size_t start = local + 30 + read_little_endian(bytes, local + 26, 2) + read_little_endian(bytes, local + 28, 2);
    if (start > end || end - start < packed || (method == 0 && packed != size)) fail();
    // DEFLATE makes at most 1032 bytes of one: what claims more would only cost memory
    if ((method != 0 && method != 8) || (method == 8 && size / 1032 > packed)) fail();
    const std::uint8_t* from = bytes.data() + start;
    const Bytes content = method == 0 ? Bytes(from, from + size) : unpack(from, packed, size, file);
    if (crc32_z(0, content.data(), content.size()) != checksum) throw Error(file + " is damaged: checksum of " + name);
    const std::size_t dot = name.rfind(".npy");
    if (!arrays.emplace(name.substr(0, dot), read_npy(content, file + ": " + name)).second) fail();
  }
  return arrays;
}

}  // namespace edge

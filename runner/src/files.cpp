#include "files.h"

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "error.h"

namespace edge {

Bytes read_file(const std::string& path, std::size_t limit) {
  std::error_code failed;
  if (!std::filesystem::is_regular_file(path, failed)) throw Error(path + " is not there, or is no file");
  const auto size = std::filesystem::file_size(path, failed);
  if (failed) throw Error(path + ": " + failed.message());
  if (size > limit) throw Error(path + " has " + std::to_string(size) + " bytes, more than " + std::to_string(limit));
  Bytes bytes(static_cast<std::size_t>(size));
  std::ifstream file(path, std::ios::binary);
  if (!bytes.empty()) file.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  if (!file) throw Error(path + " cannot be read: " + std::strerror(errno));
  return bytes;
}

}  // namespace edge

module kimberlite/benches/drivers/load

go 1.25
